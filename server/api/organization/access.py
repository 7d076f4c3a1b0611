"""Who may manage what: the server's admin everything, an owner's admin that owner."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Depends, Path, Query
from pydantic import Field

from server.api.app_services import CurrentPrincipal
from server.api.wire import Text, at_most
from server.errors import Forbidden
from server.tenancy.key_book import LONGEST_LIFE_S
from server.tenancy.owners import no_such_project
from server.tenancy.principal import Principal, Role, Scope
from server.tenancy.revisions import LONGEST_LABEL

ProjectRole = Literal["owner", "member"]
ServerRole = Literal["owner", "reader"]

_ProjectId = Annotated[str, Path(description="The project's id.", examples=["team-a"])]
UserId = Annotated[
    str, Path(description="The user's id.", examples=["user-5d41402abc4b2a76b9719d91"])
]
KeyId = Annotated[str, Path(description="The key's id.", examples=["key_7d793037a0760186574b0282"])]
Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]


def check_server_admin(principal: Principal) -> Principal:
    """Raises Forbidden."""
    if not principal.server_admin:
        raise Forbidden(
            "You have insufficient permissions for this operation: only the server's admin may do "
            "this. Use the key that the server was started with, or an admin key"
        )
    return principal


async def _server_admin(principal: CurrentPrincipal) -> Principal:
    return check_server_admin(principal)


async def _managed(project_id: _ProjectId, principal: CurrentPrincipal) -> str:
    if not principal.manages(project_id):
        raise no_such_project(project_id)
    return project_id


Label = Annotated[Text, Field(min_length=1, max_length=LONGEST_LABEL)]
"""What people call something: characters that can be printed."""
Life = Annotated[int, Field(ge=1, le=LONGEST_LIFE_S)]
"""Seconds that a key is good."""
ScopeNames = Annotated[list[Scope], at_most(32)]

ServerAdmin = Annotated[Principal, Depends(_server_admin)]
ManagedProject = Annotated[str, Depends(_managed)]
"""The project in the path, which the caller manages."""


def project_role(role: str) -> ProjectRole:
    """OpenAI's word for a role in a project."""
    return "owner" if role == "admin" else "member"


def server_role(role: str) -> ServerRole:
    """OpenAI's word for a role in the server."""
    return "owner" if role == "admin" else "reader"


def role_of(word: ProjectRole | ServerRole) -> Role:
    """The role that OpenAI's word means."""
    return "admin" if word == "owner" else "member"


def own_projects(principal: Principal, asked: Sequence[str] | None) -> Sequence[str] | None:
    """The projects that a list is of; None: all. Who is not the server's admin has one, and others'
    ids are as those that do not exist."""
    if principal.server_admin:
        return asked or None
    return [principal.owner] if not asked or principal.owner in asked else [""]
