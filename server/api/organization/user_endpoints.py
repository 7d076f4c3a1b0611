"""/v1/organization/users: all persons. Only for the server's admin."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from server.api.app_services import CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import (
    Limit,
    ServerAdmin,
    ServerRole,
    UserId,
    role_of,
    server_role,
)
from server.api.reference.answer_model import answers
from server.api.reference.organization_answers import DeletedUser, UserDocument, UserPage
from server.api.reference.parameters import After
from server.api.threads import DatabaseRoute
from server.api.wire import Null, WireModel, only_known_query
from server.tenancy.people import User

router = APIRouter(
    prefix="/v1/organization/users",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

_ELSEWHERE = "Not supported: leave it out."


class UserChange(WireModel):
    """What changes of a user."""

    role: ServerRole | None = Field(None, description="`owner` or `reader`.")
    role_id: Null = Field(None, description=_ELSEWHERE)
    developer_persona: Null = Field(None, description=_ELSEWHERE)
    technical_level: Null = Field(None, description=_ELSEWHERE)


def _document(user: User) -> Document:
    return {
        "id": user.id,
        "object": "organization.user",
        "name": user.name,
        "email": user.email,
        "role": server_role(user.role),
        "added_at": user.added_at,
    }


@router.get("", responses=answers(UserPage))
def list_users(
    services: CurrentServices,
    _: ServerAdmin,
    after: After = None,
    limit: Limit = 20,
    emails: Annotated[
        list[str] | None,
        Query(alias="emails[]", max_length=100, description="Only users of these emails."),
    ] = None,
) -> Document:
    """All users, the first added first."""
    people = services.tenants.people
    users, more = people.users(after=after, limit=limit, emails=emails or ())
    return page_document([_document(user) for user in users], more)


@router.get("/{user_id}", responses=answers(UserDocument, fails=(404,)))
def get_user(user_id: UserId, services: CurrentServices, _: ServerAdmin) -> Document:
    """One user."""
    return _document(services.tenants.people.user(user_id))


@router.post("/{user_id}", responses=answers(UserDocument, fails=(404,)))
def change_user(
    user_id: UserId, body: UserChange, services: CurrentServices, _: ServerAdmin
) -> Document:
    """Change a user's role in the server."""
    people = services.tenants.people
    role = body.role
    return _document(
        people.user(user_id) if role is None else people.set_role(user_id, role_of(role))
    )


@router.delete("/{user_id}", responses=answers(DeletedUser, fails=(404,)))
def delete_user(user_id: UserId, services: CurrentServices, _: ServerAdmin) -> Document:
    """Delete a user and all memberships, and revoke the user's keys."""
    services.tenants.people.delete_user(user_id)
    return {"id": user_id, "object": "organization.user.deleted", "deleted": True}
