"""/v1/shares: which adapters owners share, and copies of what is shared. Knows no tensors."""

from typing import Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from adapters_store.outside_values import shown
from adapters_store.store_errors import AdapterNotFound, InvalidName
from server.api.adapters.adapter_endpoints import Entry, entry_of
from server.api.app_services import CurrentOwner, CurrentPrincipal, CurrentServices, Services
from server.api.jobs.job_documents import Document, page_document
from server.api.model_lookup import check_new_name, find_adapter, parse_owned_id, unknown_model
from server.api.organization.access import Limit
from server.api.reference.adapter_answers import Adapter
from server.api.reference.answer_model import answers
from server.api.reference.parameters import AdapterId, After, ShareId
from server.api.reference.share_answers import DeletedShare, SharePage
from server.api.reference.share_answers import Share as ShareAnswer
from server.api.threads import DatabaseRoute
from server.api.wire import Text, WireModel, only_known_query
from server.errors import InvalidRequest, VerandahError
from server.tenancy.owners import EVERYBODY
from server.tenancy.shares import Share

router = APIRouter(
    prefix="/v1",
    tags=["adapters"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)


class ShareCreation(WireModel):
    """An adapter for others. A second one for the same others replaces the first."""

    adapter: Text = Field(
        description="One of your adapters, by its NAME: all versions but checkpoints are shared.",
        examples=["pirate"],
    )
    receiver: Text = Field(
        alias="with", description="Another owner, or `all`.", examples=["team-b"]
    )
    to: Literal["use", "copy"] = Field(
        "use", description="To `use` is to ask it. To `copy` is also to export it and train on it."
    )


class CopyCreation(WireModel):
    """A copy of an adapter."""

    name: Text = Field(
        description="What the copy is called: this makes a new version of it.", examples=["mine"]
    )


def _document(owner: str, share: Share) -> Document:
    own = share.owner == owner
    document: Document = {
        "id": share.id,
        "object": "adapter.share",
        "adapter": share.adapter if own else f"{share.owner}/{share.adapter}",
        "owner": share.owner,
        "with": share.receiver or EVERYBODY,
        "to": share.to,
        "created_at": share.created_at,
    }
    return document | {"created_by": share.created_by} if own else document


@router.post("/shares", responses=answers(ShareAnswer, fails=(404, 409)))
def create_share(
    body: ShareCreation, services: CurrentServices, principal: CurrentPrincipal
) -> Document:
    """Share an adapter with another owner, or with all, to be used or also copied."""
    owner, shares = principal.owner, services.tenants.shares
    name = _own_name(services, owner, body.adapter)
    share = shares.give(owner, name, body.receiver, body.to, by=principal)
    if not services.adapters.versions(owner, name):  # deleted just now
        shares.end_all_of(owner, name)
        raise unknown_model(services, body.adapter)
    return _document(owner, share)


@router.get("/shares", responses=answers(SharePage))
def list_shares(
    services: CurrentServices,
    owner: CurrentOwner,
    received: bool = Query(False, description="Those that others give, not your own."),
    adapter: str | None = Query(None, description="Only those of this adapter, by its NAME."),
    after: After = None,
    limit: Limit = 20,
) -> Document:
    """The shares that you give, or those that you receive, the first given first."""
    found, more = services.tenants.shares.list(
        owner, received=received, adapter=adapter, after=after, limit=limit
    )
    return page_document([_document(owner, share) for share in found], more)


@router.delete("/shares/{share_id}", responses=answers(DeletedShare, fails=(404,)))
def end_share(share_id: ShareId, services: CurrentServices, owner: CurrentOwner) -> Document:
    """End a share that you give: within a second, no new request finds the adapter."""
    services.tenants.shares.end(owner, share_id)
    return {"id": share_id, "object": "adapter.share.deleted", "deleted": True}


@router.post("/adapters/{adapter_id:path}/copy", responses=answers(Adapter, fails=(404, 409)))
def copy_adapter(
    adapter_id: AdapterId, body: CopyCreation, services: CurrentServices, owner: CurrentOwner
) -> Entry:
    """Publish an adapter, of your own or shared with you to copy, as the next version of another.

    The copy is your own, whatever becomes of the share.
    """
    ref = find_adapter(services, owner, adapter_id, to="copy")
    check_new_name(services, owner, body.name, "name")
    copied = services.porting.copy_adapter(ref, owner, body.name)
    try:
        came = {"from": ref.id_for(owner)}
        services.tenants.audit.note("adapter.copied", str(copied), owner=owner, after=came)
    except VerandahError:  # no change without its record
        services.adapters.delete(owner, copied.name, copied.version)
        raise
    return entry_of(services, owner, str(copied), copied)


def _own_name(services: Services, owner: str, adapter_id: str) -> str:
    """The name of an adapter that `owner` has. Raises InvalidRequest, ModelNotFound."""
    if adapter_id == services.base.id:
        raise InvalidRequest(f"{adapter_id!r} is the base model, which all use", param="adapter")
    try:
        _, name, version, right = parse_owned_id(services, owner, adapter_id)
        if right != "own" or not services.adapters.versions(owner, name):
            raise AdapterNotFound(f"{owner!r} has no adapter {name!r}")
    except (AdapterNotFound, InvalidName) as error:
        raise unknown_model(services, adapter_id) from error
    if version is not None:
        raise InvalidRequest(
            f"adapter {shown(adapter_id)} is one version: share the adapter by its name {name!r}, "
            "or copy the version to a name of its own and share that",
            param="adapter",
        )
    return name
