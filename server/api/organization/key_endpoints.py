"""/v1/organization/projects/{id}/api_keys: the keys of a project."""

from typing import Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from server.api.app_services import CurrentPrincipal, CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import (
    KeyId,
    Label,
    Life,
    Limit,
    ManagedProject,
    ScopeNames,
    project_role,
)
from server.api.reference.answer_model import answers
from server.api.reference.organization_answers import (
    ApiKeyDocument,
    ApiKeyPage,
    DeletedApiKey,
    NewApiKey,
    RotatedApiKey,
)
from server.api.reference.parameters import After
from server.api.threads import DatabaseRoute
from server.api.wire import Text, WireModel, only_known_query
from server.errors import InvalidRequest
from server.tenancy.key_book import LONGEST_LIFE_S
from server.tenancy.key_rows import ApiKey

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/api_keys",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

DAY_S = 86_400


class KeyCreation(WireModel):
    """A new key of a project. OpenAI's API makes keys of service accounts alone."""

    name: Label = Field(description="What people call it.", examples=["laptop"])
    user_id: Text | None = Field(
        None, description="The member whose key it is. Left out: a program's, of the key's name."
    )
    scopes: ScopeNames | None = Field(
        None, description="What it may do. Left out: all but `admin`.", examples=[["models.use"]]
    )
    expires_in_seconds: Life | None = Field(None, description="How long it is good.")


class KeyChange(WireModel):
    """What changes of a key; one of both at least."""

    scopes: ScopeNames | None = Field(None, description="What it may do. Empty: all but `admin`.")
    expires_in_seconds: Life | None = Field(None, description="How long it is good from now on.")


class KeyRotation(WireModel):
    """How a key is replaced."""

    grace_seconds: int = Field(
        DAY_S, ge=0, le=LONGEST_LIFE_S, description="How long the old key is still good."
    )


def _document(key: ApiKey) -> Document:
    role, made = project_role(key.role), key.created_at
    if key.user is None or key.service:
        whose: Document = {"id": key.user or key.id, "name": key.user_name or key.name}
        kind = "service_account"
    else:
        whose = {"id": key.user, "name": key.user_name, "email": key.user_email}
        kind = "user"
    return {
        "id": key.id,
        "object": "organization.project.api_key",
        "name": key.name,
        "redacted_value": f"{key.prefix}...",
        "scopes": list(key.scopes),
        "created_at": key.created_at,
        "created_by": key.created_by,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "owner": {"type": kind, kind: whose | {"role": role, "created_at": made}},
        "owner_project_access": "active" if key.active else "inactive",
    }


@router.get("", responses=answers(ApiKeyPage, fails=(404,)))
def list_keys(
    services: CurrentServices,
    project: ManagedProject,
    after: After = None,
    limit: Limit = 20,
    owner_project_access: Literal["active", "any"] = Query(
        "any", description="The same either way: keys of users who left are revoked."
    ),
) -> Document:
    """A project's keys that were not revoked, the oldest first."""
    keys, more = services.tenants.keys.list(project, after=after, limit=limit)
    return page_document([_document(key) for key in keys], more)


@router.post("", responses=answers(NewApiKey, fails=(404, 409)))
def create_key(
    body: KeyCreation,
    services: CurrentServices,
    principal: CurrentPrincipal,
    project: ManagedProject,
) -> Document:
    """Make a key. Its value is in this answer alone."""
    key, value = services.tenants.keys.create(
        project,
        body.name,
        by=principal,
        user=body.user_id,
        scopes=body.scopes,
        life_s=body.expires_in_seconds,
    )
    return _document(key) | {"value": value}


@router.get("/{key_id}", responses=answers(ApiKeyDocument, fails=(404,)))
def get_key(key_id: KeyId, services: CurrentServices, project: ManagedProject) -> Document:
    """One key, without its value."""
    return _document(services.tenants.keys.get(project, key_id))


@router.post("/{key_id}", responses=answers(ApiKeyDocument, fails=(404, 409)))
def change_key(
    key_id: KeyId, body: KeyChange, services: CurrentServices, project: ManagedProject
) -> Document:
    """Change what a key may do, or how long it is good."""
    if body.scopes is None and body.expires_in_seconds is None:
        raise InvalidRequest("nothing changes: send scopes or expires_in_seconds", param="scopes")
    keys = services.tenants.keys
    changed = keys.change(project, key_id, scopes=body.scopes, life_s=body.expires_in_seconds)
    return _document(changed)


@router.delete("/{key_id}", responses=answers(DeletedApiKey, fails=(404,)))
def revoke_key(key_id: KeyId, services: CurrentServices, project: ManagedProject) -> Document:
    """Refuse a key from now on. Every process of the server does within a second."""
    services.tenants.keys.revoke(project, key_id)
    return {"id": key_id, "object": "organization.project.api_key.deleted", "deleted": True}


@router.post("/{key_id}/rotate", responses=answers(RotatedApiKey, fails=(404, 409)))
def rotate_key(
    key_id: KeyId,
    body: KeyRotation,
    services: CurrentServices,
    principal: CurrentPrincipal,
    project: ManagedProject,
) -> Document:
    """Make a key with the rights of this one, which then expires. OpenAI's API lacks this."""
    new, value, old = services.tenants.keys.rotate(
        project, key_id, by=principal, grace_s=body.grace_seconds
    )
    return _document(new) | {"value": value, "replaces": _document(old)}
