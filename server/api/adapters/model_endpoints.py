"""/v1/models: the base model, and every adapter as a model whose `parent` it is."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Query

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound, InvalidName, StoreError
from server.api.completions.generation import find_model
from server.api.deps import CurrentOwner, GivenParts
from server.api.interfaces import Services
from server.errors import InvalidRequest

log = logging.getLogger(__name__)

router = APIRouter(tags=["models"])

Card = dict[str, object]


def _card(parts: Services, model_id: str, created: int, root: str, parent: str | None) -> Card:
    return {
        "id": model_id,
        "object": "model",
        "created": created,
        "owned_by": "verandah",
        "root": root,
        "parent": parent,
        "max_model_len": parts.engine.max_context,
        "permission": [],
    }


def _base_card(parts: Services) -> Card:
    return _card(parts, parts.base.id, parts.base.created_at, parts.base.name, None)


def _adapter_card(parts: Services, model_id: str, ref: AdapterRef) -> Card:
    # A file's time costs one look; opening 10,000 headers to list them would cost seconds.
    try:
        created = int(parts.adapters.path(ref).stat().st_mtime)
    except OSError as error:
        raise AdapterNotFound(f"adapter {ref} was deleted just now") from error
    return _card(parts, model_id, created, str(ref), parts.base.id)


@router.get("/v1/models")
def list_models(
    parts: GivenParts,
    owner: CurrentOwner,
    limit: int | None = Query(None, ge=1, description="adapters at most; none: all"),
    after: str | None = Query(None, description="the id at which the page before ended"),
) -> Card:
    """The base model and the latest version of each adapter.

    The OpenAI SDKs ask for one page and expect all; who wants pages sends `limit` and `after`.
    """
    names = [
        name
        for name in parts.adapters.names(owner)
        if after is None or after == parts.base.id or name > after
    ]
    page = names if limit is None else names[:limit]
    data = [] if after else [_base_card(parts)]
    data.extend(_latest_cards(parts, owner, page))
    return {"object": "list", "data": data, "has_more": len(page) < len(names)}


def _latest_cards(parts: Services, owner: str, names: list[str]) -> Iterator[Card]:
    for name in names:
        try:
            yield _adapter_card(parts, name, parts.adapters.resolve(owner, name))
        except AdapterNotFound:
            continue  # deleted while we listed
        except AdapterCorrupt as error:  # one broken pointer must not hide the others
            log.warning("not listed: %s", error)


@router.get("/v1/models/{model_id:path}")
def get_model(model_id: str, parts: GivenParts, owner: CurrentOwner) -> Card:
    """The base model, an adapter's latest version, or one version of it."""
    ref = find_model(parts, owner, model_id)
    return _base_card(parts) if ref is None else _adapter_card(parts, model_id, ref)


@router.delete("/v1/models/{model_id:path}")
def delete_model(model_id: str, parts: GivenParts, owner: CurrentOwner) -> Card:
    """Delete an adapter (NAME) or one version of it (NAME@VERSION). Running requests finish."""
    delete_adapter(parts, owner, model_id)
    return {"id": model_id, "object": "model", "deleted": True}


def delete_adapter(parts: Services, owner: str, adapter_id: str) -> None:
    """Delete from the store, then let the memory go once nobody uses it.

    The bare name takes all versions with it, and a job's result the checkpoints on its way.

    Raises:
        ModelNotFound: no such adapter or version.
        InvalidRequest: the id is the base model's.
        AdapterCorrupt: a version's adapter does not say what it has; the bare name can go.
    """
    if adapter_id == parts.base.id:
        raise InvalidRequest("the base model cannot be deleted", param="model")
    name, gone = _deleted(parts, owner, adapter_id)
    for number in gone:
        parts.residency.forget(AdapterRef(owner, name, number))


def _deleted(parts: Services, owner: str, adapter_id: str) -> tuple[str, Sequence[int]]:
    """Delete from the store; the name and the versions that are gone."""
    store = parts.adapters
    if "@" not in adapter_id:
        with contextlib.suppress(AdapterNotFound, InvalidName):  # told below, with what there is
            return adapter_id, store.delete(owner, adapter_id)
    ref = find_model(parts, owner, adapter_id)
    assert ref is not None, "it is not the base's id"
    gone = [*_on_the_way_to(parts, ref), ref.version]
    for version in gone:
        store.delete(owner, ref.name, version)
    return ref.name, gone


def _on_the_way_to(parts: Services, ref: AdapterRef) -> list[int]:
    """The checkpoints of the job whose result `ref` is; none if it is a checkpoint itself."""
    aside = parts.adapters.aside(ref.owner, ref.name)
    job = _job_of(parts, ref) if aside and ref.version not in aside else None
    if job is None:
        return []
    refs = (AdapterRef(ref.owner, ref.name, version) for version in aside)
    return [found.version for found in refs if _job_of(parts, found) == job]


def _job_of(parts: Services, ref: AdapterRef) -> str | None:
    try:
        return parts.adapters.open(ref).manifest.provenance.get("job")
    except StoreError:  # what is broken must be possible to delete all the same
        return None
