"""/v1/organization/projects/{id}/users: what users may do for a project."""

from fastapi import APIRouter, Depends
from pydantic import Field

from server.api.app_services import CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import (
    Limit,
    ManagedProject,
    ProjectRole,
    UserId,
    project_role,
    role_of,
)
from server.api.reference.answer_model import answers
from server.api.reference.organization_answers import (
    DeletedProjectUser,
    ProjectUser,
    ProjectUserPage,
)
from server.api.reference.parameters import After
from server.api.threads import DatabaseRoute
from server.api.wire import Text, WireModel, only_known_query
from server.tenancy.people import Member

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/users",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)


class Membership(WireModel):
    """A user who joins a project. An email that nobody has makes a new user."""

    role: ProjectRole = Field(description="`owner` manages the project, `member` uses it.")
    user_id: Text | None = Field(None, description="The user's id; or give the email.")
    email: Text | None = Field(None, description="The user's email.", examples=["ann@example.com"])


class MembershipChange(WireModel):
    """What changes of a membership."""

    role: ProjectRole | None = Field(None, description="`owner` or `member`.")


def _document(member: Member) -> Document:
    return {
        "id": member.user.id,
        "object": "organization.project.user",
        "name": member.user.name,
        "email": member.user.email,
        "role": project_role(member.role),
        "added_at": member.added_at,
    }


@router.get("", responses=answers(ProjectUserPage, fails=(404,)))
def list_members(
    services: CurrentServices, project: ManagedProject, after: After = None, limit: Limit = 20
) -> Document:
    """A project's users, the first added first."""
    members, more = services.tenants.people.members(
        project, service=False, after=after, limit=limit
    )
    return page_document([_document(member) for member in members], more)


@router.post("", responses=answers(ProjectUser, fails=(404, 409)))
def add_member(body: Membership, services: CurrentServices, project: ManagedProject) -> Document:
    """Add a user to a project."""
    role = role_of(body.role)
    people = services.tenants.people
    return _document(people.add(project, role, user_id=body.user_id, email=body.email))


@router.get("/{user_id}", responses=answers(ProjectUser, fails=(404,)))
def get_member(user_id: UserId, services: CurrentServices, project: ManagedProject) -> Document:
    """One user of a project."""
    return _document(services.tenants.people.member(project, user_id, service=False))


@router.post("/{user_id}", responses=answers(ProjectUser, fails=(404,)))
def change_member(
    user_id: UserId, body: MembershipChange, services: CurrentServices, project: ManagedProject
) -> Document:
    """Change what a user may do for a project."""
    role = None if body.role is None else role_of(body.role)
    people = services.tenants.people
    return _document(people.change_member(project, user_id, service=False, role=role))


@router.delete("/{user_id}", responses=answers(DeletedProjectUser, fails=(404,)))
def remove_member(user_id: UserId, services: CurrentServices, project: ManagedProject) -> Document:
    """Remove a user from a project, and revoke the user's keys of it."""
    services.tenants.people.remove(project, user_id, service=False)
    return {"id": user_id, "object": "organization.project.user.deleted", "deleted": True}
