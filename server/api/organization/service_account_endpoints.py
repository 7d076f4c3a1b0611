"""/v1/organization/projects/{id}/service_accounts: programs that use a project, and their keys."""

from fastapi import APIRouter, Depends
from pydantic import Field

from server.api.app_services import CurrentPrincipal, CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import (
    Label,
    Life,
    Limit,
    ManagedProject,
    ProjectRole,
    ScopeNames,
    UserId,
    project_role,
    role_of,
)
from server.api.reference.answer_model import answers
from server.api.reference.organization_answers import (
    DeletedServiceAccount,
    NewServiceAccount,
    NewServiceAccountKey,
    ServiceAccount,
    ServiceAccountPage,
)
from server.api.reference.parameters import After
from server.api.threads import DatabaseRoute
from server.api.wire import WireModel, only_known_query
from server.errors import InvalidRequest, VerandahError
from server.tenancy.key_rows import ApiKey
from server.tenancy.people import Member

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/service_accounts",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)


class ServiceAccountCreation(WireModel):
    """A new service account and, unless it is declined, its first key."""

    name: Label = Field(description="What people call it.", examples=["nightly-job"])
    create_service_account_only: bool | None = Field(None, description="True: make no key.")
    expires_in_seconds: Life | None = Field(None, description="How long the key is good.")


class ServiceAccountChange(WireModel):
    """What changes of a service account."""

    name: Label | None = Field(None, description="What people call it.")
    role: ProjectRole | None = Field(None, description="`owner` or `member`.")


class ServiceAccountKey(WireModel):
    """A new key of a service account."""

    name: Label = Field("key", description="What people call it.")
    scopes: ScopeNames | None = Field(
        None, description="What it may do. Left out: all but `admin`.", examples=[["models.use"]]
    )
    expires_in_seconds: Life | None = Field(None, description="How long it is good.")


def _document(member: Member) -> Document:
    return {
        "id": member.user.id,
        "object": "organization.project.service_account",
        "name": member.user.name,
        "role": project_role(member.role),
        "created_at": member.added_at,
    }


def _key_document(key: ApiKey, value: str) -> Document:
    return {
        "id": key.id,
        "object": "organization.project.service_account.api_key",
        "name": key.name,
        "value": value,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }


@router.get("", responses=answers(ServiceAccountPage, fails=(404,)))
def list_service_accounts(
    services: CurrentServices, project: ManagedProject, after: After = None, limit: Limit = 20
) -> Document:
    """A project's service accounts, the oldest first."""
    people = services.tenants.people
    members, more = people.members(project, service=True, after=after, limit=limit)
    return page_document([_document(member) for member in members], more)


@router.post("", responses=answers(NewServiceAccount, fails=(404, 409)))
def create_service_account(
    body: ServiceAccountCreation,
    services: CurrentServices,
    principal: CurrentPrincipal,
    project: ManagedProject,
) -> Document:
    """Make a service account. The value of its key is in this answer alone."""
    if body.create_service_account_only and body.expires_in_seconds is not None:
        raise InvalidRequest(
            "expires_in_seconds is of a key, and create_service_account_only makes none: leave "
            "one of them out",
            param="expires_in_seconds",
        )
    member = services.tenants.people.add_service_account(project, body.name)
    key = None
    if not body.create_service_account_only:
        try:
            made = services.tenants.keys.create(
                project,
                body.name,
                by=principal,
                user=member.user.id,
                life_s=body.expires_in_seconds,
            )
        except VerandahError:  # a refused request leaves no account
            services.tenants.people.remove(project, member.user.id, service=True)
            raise
        key = _key_document(*made)
    return _document(member) | {"api_key": key}


@router.get("/{user_id}", responses=answers(ServiceAccount, fails=(404,)))
def get_service_account(
    user_id: UserId, services: CurrentServices, project: ManagedProject
) -> Document:
    """One service account."""
    return _document(services.tenants.people.member(project, user_id, service=True))


@router.post("/{user_id}", responses=answers(ServiceAccount, fails=(404,)))
def change_service_account(
    user_id: UserId,
    body: ServiceAccountChange,
    services: CurrentServices,
    project: ManagedProject,
) -> Document:
    """Change a service account's name or role."""
    role = None if body.role is None else role_of(body.role)
    people = services.tenants.people
    changed = people.change_member(project, user_id, service=True, role=role, name=body.name)
    return _document(changed)


@router.delete("/{user_id}", responses=answers(DeletedServiceAccount, fails=(404,)))
def delete_service_account(
    user_id: UserId, services: CurrentServices, project: ManagedProject
) -> Document:
    """Delete a service account, and revoke its keys."""
    services.tenants.people.remove(project, user_id, service=True)
    kind = "organization.project.service_account.deleted"
    return {"id": user_id, "object": kind, "deleted": True}


@router.post("/{user_id}/api_keys", responses=answers(NewServiceAccountKey, fails=(404, 409)))
def create_service_account_key(
    user_id: UserId,
    body: ServiceAccountKey,
    services: CurrentServices,
    principal: CurrentPrincipal,
    project: ManagedProject,
) -> Document:
    """Make another key of a service account. Its value is in this answer alone."""
    services.tenants.people.member(project, user_id, service=True)
    key, value = services.tenants.keys.create(
        project,
        body.name,
        by=principal,
        user=user_id,
        scopes=body.scopes,
        life_s=body.expires_in_seconds,
    )
    return _key_document(key, value)
