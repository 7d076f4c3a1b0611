"""/v1/models: the base model, and every adapter as a model with the base as its `parent`."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from fastapi import APIRouter, Query

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound, InvalidName, StoreError
from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.model_lookup import (
    find_adapter,
    find_model,
    ids_after,
    listed_id,
    listed_ref,
    parse_owned_id,
    unknown_model,
)
from server.api.reference.adapter_answers import DeletedModel, ModelCard, ModelList
from server.api.reference.answer_model import answers
from server.api.reference.parameters import After, ModelId
from server.api.threads import ChangingRoute
from server.errors import InvalidRequest
from server.tenancy.visibility import visible

log = logging.getLogger(__name__)

router = APIRouter(tags=["models"], route_class=ChangingRoute)

Card = dict[str, object]


def _card(
    services: Services,
    model_id: str,
    created: int,
    root: str,
    parent: str | None,
    shared_by: str | None = None,
) -> Card:
    return {
        "id": model_id,
        "object": "model",
        "created": created,
        "owned_by": shared_by or "verandah",
        "root": root,
        "parent": parent,
        "max_model_len": services.engine.max_context,
        "permission": [],
    }


def _base_card(services: Services) -> Card:
    return _card(services, services.base.id, services.base.created_at, services.base.name, None)


def _adapter_card(services: Services, owner: str, model_id: str, ref: AdapterRef) -> Card:
    # One `stat` gives the time; opening the headers of 10,000 adapters would take seconds.
    try:
        created = int(services.adapters.path(ref).stat().st_mtime)
    except OSError as error:
        raise AdapterNotFound(f"adapter {ref} was deleted just now") from error
    to = visible(owner, ref.owner, ref.name, services.tenants.shares)
    shared_by = None if to == "own" else ref.owner
    card = _card(services, model_id, created, ref.id_for(owner), services.base.id, shared_by)
    return card if to == "own" else card | {"shared": to}


@router.get("/v1/models", responses=answers(ModelList))
def list_models(
    services: CurrentServices,
    owner: CurrentOwner,
    limit: int | None = Query(
        None, ge=1, description="How many adapters at most. All if left out."
    ),
    after: After = None,
) -> Card:
    """The base model and the latest version of each adapter; last those that others share, which
    are `OWNER/NAME`.

    The OpenAI SDKs request one page and expect all models; `limit` and `after` give pages.
    """
    ids = ids_after(services, owner, None if after == services.base.id else after)
    page = ids if limit is None else ids[:limit]
    data = [] if after else [_base_card(services)]
    for listed in page:
        try:
            ref = listed_ref(services, owner, listed)
            data.append(_adapter_card(services, owner, listed_id(services, owner, ref), ref))
        except AdapterNotFound:  # deleted since the names were read
            continue
        except AdapterCorrupt as error:  # one damaged adapter must not hide the others
            log.warning("an adapter is left out of the list of models: %s", error)
    return {"object": "list", "data": data, "has_more": len(page) < len(ids)}


@router.get("/v1/models/{model_id:path}", responses=answers(ModelCard, fails=(404,)))
def get_model(model_id: ModelId, services: CurrentServices, owner: CurrentOwner) -> Card:
    """The base model, an adapter's latest version, or one version of it."""
    ref = find_model(services, owner, model_id)
    return _base_card(services) if ref is None else _adapter_card(services, owner, model_id, ref)


@router.delete("/v1/models/{model_id:path}", responses=answers(DeletedModel, fails=(404,)))
def delete_model(model_id: ModelId, services: CurrentServices, owner: CurrentOwner) -> Card:
    """Delete an adapter (NAME) or one version of it (NAME@VERSION). Running requests finish."""
    if model_id == services.base.id:
        raise InvalidRequest("the base model cannot be deleted", param="model")
    delete_adapter(services, owner, model_id)
    return {"id": model_id, "object": "model", "deleted": True}


def delete_adapter(services: Services, owner: str, adapter_id: str) -> None:
    """Delete from the store, and free the memory once no request uses it.

    The bare name deletes all versions. A job's result deletes the job's checkpoints too.

    Raises:
        ModelNotFound: no such adapter or version.
        InvalidRequest: the id is the base model's, and no adapter has that name.
        AdapterCorrupt: the pointer of the adapter is damaged; deleting the bare name still works.
    """
    _note_deletion(services, owner, adapter_id)
    for ref in _delete_stored(services, owner, adapter_id):
        services.residency.forget(ref)


def _note_deletion(services: Services, owner: str, adapter_id: str) -> None:
    """Record the deletion of what is there. Before it: a crash may leave a record of what was only
    begun, and never a deletion without one."""
    with suppress(AdapterNotFound, InvalidName):
        _, name, version, right = parse_owned_id(services, owner, adapter_id)
        if right == "own" and _is_there(services, owner, name, version):
            thing = name if version is None else f"{name}@{version}"
            services.tenants.audit.note("adapter.deleted", thing, owner=owner)


def _is_there(services: Services, owner: str, name: str, version: int | None) -> bool:
    if version is None:
        return name in services.adapters.names(owner)
    try:
        return version in services.adapters.versions(owner, name)
    except StoreError:  # damaged: it may be there
        return True


def _delete_stored(services: Services, owner: str, adapter_id: str) -> Sequence[AdapterRef]:
    """Delete from the store. Returns the deleted versions."""
    store = services.adapters
    try:
        _, name, version, right = parse_owned_id(services, owner, adapter_id)
        if right != "own":  # others' may be copied at most
            raise AdapterNotFound(f"{owner!r} does not own {adapter_id!r}")
        if version is None:
            # Before: else what is made next under the name would be shared if this fails between.
            services.tenants.shares.end_all_of(owner, name)
            return [AdapterRef(owner, name, each) for each in store.delete(owner, name)]
        checkpoints = checkpoints_of(services, AdapterRef(owner, name, version))
        # The result goes last: after a failure between them, the same request deletes the rest.
        if not {*store.versions(owner, name)} - {*checkpoints, version}:
            services.tenants.shares.end_all_of(owner, name)
        deleted = [store.delete(owner, name, each) for each in (*checkpoints, version)]
    except (AdapterNotFound, InvalidName) as error:
        find_adapter(services, owner, adapter_id, "model")  # raises if it is the base's id
        raise unknown_model(services, adapter_id) from error
    return [AdapterRef(owner, name, each) for versions in deleted for each in versions]


def checkpoints_of(services: Services, ref: AdapterRef) -> list[int]:
    """The checkpoints of the job whose result `ref` is; none if it is a checkpoint itself."""
    checkpoints = services.adapters.aside(ref.owner, ref.name)
    job = _job_of(services, ref) if checkpoints and ref.version not in checkpoints else None
    if job is None:
        return []
    refs = (AdapterRef(ref.owner, ref.name, version) for version in checkpoints)
    return [checkpoint.version for checkpoint in refs if _job_of(services, checkpoint) == job]


def _job_of(services: Services, ref: AdapterRef) -> str | None:
    try:
        return services.adapters.open(ref).manifest.provenance.get("job")
    except StoreError:  # a damaged version must be deletable too
        return None
