"""Whose keys and members a page manages, and how a form's fields become a request of the API."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query
from pydantic import BaseModel, ValidationError

from server.api.organization.access import check_server_admin
from server.console.rendering import CurrentPage, needs
from server.refused_fields import refusal
from server.tenancy.owners import no_such_project
from server.tenancy.principal import Principal

B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True)
class Managed:
    """The owner that a page is about. `own`: it is that of the browser's key."""

    owner: str
    own: bool

    def link(self, path: str, **query: object) -> str:
        """A page about the same owner."""
        named: dict[str, object] = {} if self.own else {"owner": self.owner}
        return address(path, named | query)


def address(path: str, query: Mapping[str, object]) -> str:
    """A link with those of the parameters that say something."""
    said = {name: value for name, value in query.items() if value not in (None, "", 0)}
    return f"{path}?{urlencode(said)}" if said else path


async def _managed(page: CurrentPage, owner: Annotated[str, Query(max_length=256)] = "") -> Managed:
    owner = owner or page.owner
    if not page.known.manages(owner):
        raise no_such_project(owner)
    return Managed(owner, owner == page.owner)


async def _admin(page: CurrentPage) -> Principal:
    return check_server_admin(page.known)


MANAGERS = (Depends(needs("admin")),)
CurrentManaged = Annotated[Managed, Depends(_managed)]
ServerAdminOnly = Annotated[Principal, Depends(_admin)]


def body_of(model: type[B], **fields: Any) -> B:
    """A form's fields as the body of the API's request. Raises InvalidRequest."""
    try:
        return model(**fields)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise refusal(problems, model) from None  # type: ignore[arg-type]
