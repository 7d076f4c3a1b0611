"""/v1/adapters: lists, shows, pins and deletes adapters. Knows no files of PEFT."""

import logging

from fastapi import APIRouter, Query

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound
from server.adapters.adapter_status import AdapterStatus
from server.api.adapters.model_endpoints import delete_adapter
from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.model_lookup import find_adapter, listed_id, names_after
from server.api.reference.adapter_answers import (
    Adapter,
    AdapterPage,
    DamagedAdapter,
    DeletedAdapter,
)
from server.api.reference.answer_model import answers
from server.api.reference.parameters import AdapterId, After
from server.api.threads import ChangingRoute

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=ChangingRoute)

Entry = dict[str, object]


def _statuses(services: Services) -> dict[AdapterRef, AdapterStatus]:
    return {status.ref: status for status in services.residency.snapshot()}


def _entry(
    services: Services, adapter_id: str, ref: AdapterRef, status: AdapterStatus | None
) -> Entry:
    checkpoints = services.adapters.aside(ref.owner, ref.name)
    versions = services.adapters.versions(ref.owner, ref.name)
    entry: Entry = {
        "id": adapter_id,
        "object": "adapter",
        "version": ref.version,
        "versions": [version for version in versions if version not in checkpoints],
        "checkpoints": list(checkpoints),
        "parent": services.base.id,
        "residency": status.state if status else "stored",
        "slot": status.slot if status else None,
        "resident_bytes": status.bytes if status else 0,
        "in_use": status.in_use if status else 0,
        "pinned": status.pinned if status else False,
    }
    try:
        return entry | _header(services, ref)
    except AdapterCorrupt as error:  # one damaged file must not hide the others
        return entry | {"error": str(error)}


def _header(services: Services, ref: AdapterRef) -> Entry:
    stored = services.adapters.open(ref)
    manifest = stored.manifest
    return {
        "created_at": manifest.created_at,
        "method": manifest.method,
        "rank": manifest.rank,
        "seed": manifest.seed,
        "targets": len(manifest.targets),
        "bytes": stored.size_bytes,
        "sha256": stored.sha256,
        "base_name": manifest.base_name,
        "base_fingerprint": manifest.base_fingerprint,
        "default_prompt": manifest.default_prompt,
        "provenance": dict(manifest.provenance),
    }


def entry_of(services: Services, adapter_id: str, ref: AdapterRef) -> Entry:
    """The document of one version."""
    return _entry(services, adapter_id, ref, _statuses(services).get(ref))


@router.get("", responses=answers(AdapterPage))
def list_adapters(
    services: CurrentServices,
    owner: CurrentOwner,
    limit: int = Query(100, ge=1, le=1000, description="How many at most."),
    after: After = None,
) -> Entry:
    """The latest version of each adapter, by name, a page at a time."""
    names = names_after(services, owner, after)
    statuses = _statuses(services)
    data = []
    for name in names[:limit]:
        try:
            ref = services.adapters.resolve(owner, name)
            data.append(_entry(services, listed_id(services, ref), ref, statuses.get(ref)))
        except AdapterNotFound:  # deleted since the names were read
            continue
        except AdapterCorrupt as error:  # one damaged adapter must not hide the others
            log.warning("an adapter is left out of the list: %s", error)
    return {
        "object": "list",
        "data": data,
        "total": len(services.adapters.names(owner)),
        "last_id": names[:limit][-1] if names else None,
        "has_more": len(names) > limit,
    }


@router.get("/{adapter_id:path}", responses=answers(Adapter, DamagedAdapter, fails=(404,)))
def get_adapter(adapter_id: AdapterId, services: CurrentServices, owner: CurrentOwner) -> Entry:
    """An adapter's latest version (NAME) or one version (NAME@VERSION)."""
    return entry_of(services, adapter_id, find_adapter(services, owner, adapter_id))


@router.delete("/{adapter_id:path}", responses=answers(DeletedAdapter, fails=(404,)))
def delete(adapter_id: AdapterId, services: CurrentServices, owner: CurrentOwner) -> Entry:
    """Delete an adapter (NAME) or one version of it (NAME@VERSION). Running requests finish.

    Also an adapter that is named as the base model, from before the base had that name.
    """
    delete_adapter(services, owner, adapter_id)
    return {"id": adapter_id, "object": "adapter", "deleted": True}


@router.post("/{adapter_id:path}/pin", responses=answers(Adapter, DamagedAdapter, fails=(404, 409)))
def pin(adapter_id: AdapterId, services: CurrentServices, owner: CurrentOwner) -> Entry:
    """Load a version now. It keeps the slot of its first request until unpinned or deleted."""
    ref = find_adapter(services, owner, adapter_id)
    services.tenants.audit.note("adapter.pinned", str(ref), owner=owner)
    services.residency.pin(ref)
    return entry_of(services, adapter_id, ref)


@router.post(
    "/{adapter_id:path}/unpin", responses=answers(Adapter, DamagedAdapter, fails=(404, 409))
)
def unpin(adapter_id: AdapterId, services: CurrentServices, owner: CurrentOwner) -> Entry:
    """Allow a version to be evicted again."""
    ref = find_adapter(services, owner, adapter_id)
    services.tenants.audit.note("adapter.unpinned", str(ref), owner=owner)
    services.residency.unpin(ref)
    return entry_of(services, adapter_id, ref)
