"""/v1/organization/admin_api_keys: keys that may do everything. Only for the server's admin."""

from typing import Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from server.api.app_services import CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import KeyId, Label, Life, Limit, ServerAdmin
from server.api.reference.answer_model import answers
from server.api.reference.organization_answers import (
    AdminKey,
    AdminKeyPage,
    DeletedAdminKey,
    NewAdminKey,
)
from server.api.reference.parameters import After
from server.api.threads import DatabaseRoute
from server.api.wire import WireModel, only_known_query
from server.tenancy.found_key import ADMIN
from server.tenancy.key_rows import ApiKey
from server.tenancy.principal import DEFAULT_OWNER

router = APIRouter(
    prefix="/v1/organization/admin_api_keys",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)


class AdminKeyCreation(WireModel):
    """A new admin key."""

    name: Label = Field(description="What people call it.", examples=["ops"])
    expires_in_seconds: Life | None = Field(None, description="How long it is good.")


def _document(key: ApiKey) -> Document:
    return {
        "id": key.id,
        "object": "organization.admin_api_key",
        "name": key.name,
        "redacted_value": f"{key.prefix}...",
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "owner": {
            "type": "service_account",
            "object": "organization.user",
            "id": key.id,
            "name": key.name,
            "created_at": key.created_at,
            "role": "owner",
        },
    }


@router.get("", responses=answers(AdminKeyPage))
def list_admin_keys(
    services: CurrentServices,
    _: ServerAdmin,
    after: After = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = Query("asc", description="By age: `asc` is oldest first."),
) -> Document:
    """The admin keys that were not revoked."""
    keys, more = services.tenants.keys.list(
        DEFAULT_OWNER, kind=ADMIN, after=after, limit=limit, newest_first=order == "desc"
    )
    return page_document([_document(key) for key in keys], more)


@router.post("", responses=answers(NewAdminKey, fails=(409,)))
def create_admin_key(
    body: AdminKeyCreation, services: CurrentServices, principal: ServerAdmin
) -> Document:
    """Make an admin key. Its value is in this answer alone."""
    key, value = services.tenants.keys.create(
        DEFAULT_OWNER, body.name, by=principal, life_s=body.expires_in_seconds, kind=ADMIN
    )
    return _document(key) | {"value": value}


@router.get("/{key_id}", responses=answers(AdminKey, fails=(404,)))
def get_admin_key(key_id: KeyId, services: CurrentServices, _: ServerAdmin) -> Document:
    """One admin key, without its value."""
    return _document(services.tenants.keys.get(DEFAULT_OWNER, key_id, kind=ADMIN))


@router.delete("/{key_id}", responses=answers(DeletedAdminKey, fails=(404,)))
def revoke_admin_key(key_id: KeyId, services: CurrentServices, _: ServerAdmin) -> Document:
    """Refuse an admin key from now on. Every process of the server does within a second."""
    services.tenants.keys.revoke(DEFAULT_OWNER, key_id, kind=ADMIN)
    return {"id": key_id, "object": "organization.admin_api_key.deleted", "deleted": True}
