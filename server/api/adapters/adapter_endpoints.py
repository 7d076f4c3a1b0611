"""/v1/adapters: lists, shows, pins and deletes adapters. Knows no files of PEFT."""

import logging

from fastapi import APIRouter, Query

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound
from server.adapters.adapter_status import AdapterStatus
from server.api.adapters.model_endpoints import delete_adapter
from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.model_lookup import find_adapter, ids_after, listed_id, listed_ref
from server.api.organization.access import ServerAdmin
from server.api.reference.adapter_answers import (
    Adapter,
    AdapterPage,
    DamagedAdapter,
    DeletedAdapter,
    SharedAdapter,
)
from server.api.reference.answer_model import answers
from server.api.reference.parameters import AdapterId, After
from server.api.threads import ChangingRoute
from server.tenancy.visibility import visible

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=ChangingRoute)

Entry = dict[str, object]

_SHOWN_TO_OTHERS = frozenset(
    ("created_at", "method", "rank", "targets", "bytes", "base_name", "base_fingerprint")
)


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
        return entry | header_of(services, ref.owner, ref)
    except AdapterCorrupt as error:  # one damaged file must not hide the others
        return entry | {"error": str(error)}


def header_of(services: Services, owner: str, ref: AdapterRef) -> Entry:
    """What the file of one version says, as `owner` may see it.

    Raises:
        AdapterNotFound, AdapterCorrupt: it cannot be read.
    """
    header = _header(services, ref)
    if ref.owner == owner:
        return header
    return {name: value for name, value in header.items() if name in _SHOWN_TO_OTHERS}


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


def entry_of(services: Services, owner: str, adapter_id: str, ref: AdapterRef) -> Entry:
    """The document of one version, as `owner` may see it."""
    return _entry_for(services, owner, adapter_id, ref, _statuses(services).get(ref))


def _entry_for(
    services: Services, owner: str, adapter_id: str, ref: AdapterRef, status: AdapterStatus | None
) -> Entry:
    if ref.owner != owner:
        return _shared_entry(services, owner, adapter_id, ref)
    return _entry(services, adapter_id, ref, status)


def _shared_entry(services: Services, owner: str, adapter_id: str, ref: AdapterRef) -> Entry:
    """Of another owner's adapter, what tells neither how it was made nor who uses it."""
    checkpoints = services.adapters.aside(ref.owner, ref.name)
    versions = services.adapters.versions(ref.owner, ref.name)
    entry: Entry = {
        "id": adapter_id,
        "object": "adapter",
        "version": ref.version,
        "versions": [version for version in versions if version not in checkpoints],
        "parent": services.base.id,
        "owner": ref.owner,
        "shared": visible(owner, ref.owner, ref.name, services.tenants.shares),
    }
    try:
        return entry | header_of(services, owner, ref)
    except AdapterCorrupt:
        return entry | {"error": f"it is damaged: {ref.owner!r} must restore it"}


@router.get("", responses=answers(AdapterPage))
def list_adapters(
    services: CurrentServices,
    owner: CurrentOwner,
    limit: int = Query(100, ge=1, le=1000, description="How many at most."),
    after: After = None,
    contains: str = Query(
        "", max_length=129, description="Only those whose id has this in it, in any case."
    ),
) -> Entry:
    """The latest version of each adapter, by name, a page at a time; last those that others share,
    which are `OWNER/NAME`."""
    ids = ids_after(services, owner, after, contains)
    total = len(ids) if after is None else len(ids_after(services, owner, None, contains))
    statuses = _statuses(services)
    data = []
    for listed in ids[:limit]:
        try:
            ref = listed_ref(services, owner, listed)
            adapter_id, status = listed_id(services, owner, ref), statuses.get(ref)
            data.append(_entry_for(services, owner, adapter_id, ref, status))
        except AdapterNotFound:  # deleted since the names were read
            continue
        except AdapterCorrupt as error:  # one damaged adapter must not hide the others
            log.warning("an adapter is left out of the list: %s", error)
    return {
        "object": "list",
        "data": data,
        "total": total,
        "last_id": ids[:limit][-1] if ids else None,
        "has_more": len(ids) > limit,
    }


@router.get(
    "/{adapter_id:path}", responses=answers(Adapter, DamagedAdapter, SharedAdapter, fails=(404,))
)
def get_adapter(adapter_id: AdapterId, services: CurrentServices, owner: CurrentOwner) -> Entry:
    """An adapter's latest version (NAME) or one version (NAME@VERSION)."""
    return entry_of(services, owner, adapter_id, find_adapter(services, owner, adapter_id))


@router.delete("/{adapter_id:path}", responses=answers(DeletedAdapter, fails=(404,)))
def delete(adapter_id: AdapterId, services: CurrentServices, owner: CurrentOwner) -> Entry:
    """Delete an adapter (NAME) or one version of it (NAME@VERSION). Running requests finish.

    Also an adapter that is named as the base model, from before the base had that name.
    """
    delete_adapter(services, owner, adapter_id)
    return {"id": adapter_id, "object": "adapter", "deleted": True}


@router.post("/{adapter_id:path}/pin", responses=answers(Adapter, DamagedAdapter, fails=(404, 409)))
def pin(adapter_id: AdapterId, services: CurrentServices, admin: ServerAdmin) -> Entry:
    """Load a version now. It keeps the slot of its first request until unpinned or deleted.

    Only for the server's admin, since it takes memory from all owners: `OWNER/NAME` names any.
    """
    ref = _find_any(services, admin.owner, adapter_id)
    services.tenants.audit.note("adapter.pinned", str(ref), owner=ref.owner)
    services.residency.pin(ref)
    return _pinned(services, adapter_id, ref)


@router.post(
    "/{adapter_id:path}/unpin", responses=answers(Adapter, DamagedAdapter, fails=(404, 409))
)
def unpin(adapter_id: AdapterId, services: CurrentServices, admin: ServerAdmin) -> Entry:
    """Allow a version to be evicted again. Only for the server's admin."""
    ref = _find_any(services, admin.owner, adapter_id)
    services.tenants.audit.note("adapter.unpinned", str(ref), owner=ref.owner)
    services.residency.unpin(ref)
    return _pinned(services, adapter_id, ref)


def _find_any(services: Services, owner: str, adapter_id: str) -> AdapterRef:
    """The version that an id names for the server's admin, who may pin everybody's."""
    of, slash, rest = adapter_id.partition("/")
    return find_adapter(services, of, rest) if slash else find_adapter(services, owner, adapter_id)


def _pinned(services: Services, adapter_id: str, ref: AdapterRef) -> Entry:
    return _entry(services, adapter_id, ref, _statuses(services).get(ref))
