"""/console/adapters/NAME: one adapter or version, and what can be done with it.

What is done has addresses behind `-`, which no owner is called.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from server.api.adapters import adapter_endpoints, share_endpoints
from server.api.adapters.model_endpoints import delete_adapter
from server.api.adapters.porting_endpoints import export_adapter
from server.api.app_services import CurrentServices
from server.api.model_lookup import find_adapter, unknown_model
from server.api.organization.access import check_server_admin
from server.console.adapters.adapter_view import Places, adapter_view
from server.console.adapters.deletion_costs import deletion_costs
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, Page, needs

router = APIRouter(route_class=PageRoute)

_READ = [Depends(needs("adapters.read"))]
_WRITE = [Depends(needs("adapters.write"))]
_Text = Annotated[str, Form()]


def _home(adapter_id: str) -> str:
    return f"/console/adapters/{adapter_id.partition('@')[0]}"


@router.get("/console/adapters/-/place/{adapter_id:path}", dependencies=_READ)
def place(adapter_id: str, page: CurrentPage, services: CurrentServices) -> Response:
    """Where a version is in memory, as it changes."""
    entry = adapter_endpoints.get_adapter(adapter_id, services, page.owner)
    return page.show("_adapter_place.html", entry=entry)


@router.post("/console/adapters/-/pin/{adapter_id:path}", dependencies=_WRITE)
def pin(
    adapter_id: str,
    page: CurrentPage,
    services: CurrentServices,
    pinned: Annotated[bool, Form()] = True,
) -> Response:
    """Keep a version in memory, or let it go."""
    change = adapter_endpoints.pin if pinned else adapter_endpoints.unpin
    entry = change(adapter_id, services, check_server_admin(page.known))
    if page.partial:
        return page.show("_adapter_place.html", entry=entry)
    return page.go_to(f"/console/adapters/{adapter_id}")


@router.get("/console/adapters/-/export/{adapter_id:path}", dependencies=_READ)
async def export(
    adapter_id: str,
    page: CurrentPage,
    services: CurrentServices,
    format: Literal["peft", "peft-lora", "merged"] = "peft",
) -> Response:
    """The files, as the API gives them; an error is a page."""
    return await run_in_threadpool(export_adapter, adapter_id, services, page.owner, format)


@router.post("/console/adapters/-/latest/{adapter_id:path}", dependencies=_WRITE)
def make_latest(adapter_id: str, page: CurrentPage, services: CurrentServices) -> Response:
    """Go back to an earlier version: a copy of it becomes the latest."""
    ref = find_adapter(services, page.owner, adapter_id)
    if ref.owner != page.owner:
        raise unknown_model(services, adapter_id)
    return _copied(page, adapter_id, ref.name)


@router.post("/console/adapters/-/copy/{adapter_id:path}", dependencies=_WRITE)
def copy(
    adapter_id: str, page: CurrentPage, services: CurrentServices, name: _Text = ""
) -> Response:
    """Copy an adapter, of another owner too, into an adapter of one's own."""
    return _copied(page, adapter_id, name.strip())


def _copied(page: Page, adapter_id: str, name: str) -> Response:
    body = share_endpoints.CopyCreation(name=name)
    share_endpoints.copy_adapter(adapter_id, body, page.services, page.owner)
    return page.go_to(_home(name))


@router.post("/console/adapters/-/share/{adapter_id:path}", dependencies=_WRITE)
def share(
    adapter_id: str,
    page: CurrentPage,
    services: CurrentServices,
    receiver: _Text = "",
    to: Annotated[Literal["use", "copy"], Form()] = "use",
) -> Response:
    """Share an adapter with another owner, or with all."""
    body = share_endpoints.ShareCreation.model_validate(
        {"adapter": adapter_id, "with": receiver.strip(), "to": to}
    )
    share_endpoints.create_share(body, services, page.known)
    return page.go_to(f"{_home(adapter_id)}#sharing")


@router.post("/console/adapters/-/unshare/{share_id}", dependencies=_WRITE)
def unshare(
    share_id: str, page: CurrentPage, services: CurrentServices, adapter: _Text = ""
) -> Response:
    """End a share."""
    back = find_adapter(services, page.owner, adapter).name  # first: a refusal changes nothing
    share_endpoints.end_share(share_id, services, page.owner)
    return page.go_to(f"{_home(back)}#sharing")


@router.get("/console/adapters/-/delete/{adapter_id:path}", dependencies=_WRITE)
def ask_to_delete(adapter_id: str, page: CurrentPage, services: CurrentServices) -> Response:
    """Say what would be lost."""
    costs = deletion_costs(page, adapter_id)
    template = "_adapter_delete.html" if page.partial else "adapter_delete.html"
    return page.show(template, costs=costs, problem="")


@router.post("/console/adapters/-/delete/{adapter_id:path}", dependencies=_WRITE)
def delete(
    adapter_id: str, page: CurrentPage, services: CurrentServices, confirm: _Text = ""
) -> Response:
    """Delete one version, or a whole adapter, whose name must be typed for that."""
    costs = deletion_costs(page, adapter_id)
    if costs.version is None and confirm.strip() != costs.name:
        problem = f"Nothing was deleted: type {costs.name} to delete the whole adapter."
        return page.show("adapter_delete.html", status=400, costs=costs, problem=problem)
    delete_adapter(services, page.owner, adapter_id)
    left = costs.version is not None and costs.heir
    return page.go_to(_home(costs.name) if left else "/console/adapters")


@router.get("/console/adapters/{adapter_id:path}", dependencies=_READ)
def adapter(
    adapter_id: str,
    page: CurrentPage,
    services: CurrentServices,
    versions: int | None = None,
    checkpoints: int | None = None,
    shares: str | None = None,
) -> Response:
    """An adapter, or one version of it."""
    view = adapter_view(page, adapter_id, Places(versions, checkpoints, shares))
    return page.show("adapter.html", view=view)
