"""/console/adapters: the list of adapters, and a form to import one."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from server.api.adapters.adapter_endpoints import list_adapters
from server.api.app_services import CurrentServices
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, needs

router = APIRouter(route_class=PageRoute)

_ROWS = 50


@router.get("/console/adapters", dependencies=[Depends(needs("adapters.read"))])
def adapters(
    page: CurrentPage,
    services: CurrentServices,
    contains: Annotated[str, Query(max_length=129)] = "",
    after: str | None = None,
) -> Response:
    """A page of adapters: all, or those that are searched for."""
    wanted = contains.strip()
    found = list_adapters(services, page.owner, _ROWS, after, wanted)
    return page.show(
        "_adapters.html" if page.partial else "adapters.html",
        found=found,
        contains=wanted,
        after=after,
        shared=services.tenants.shares.shared_by(page.owner),
    )


@router.get("/console/adapters/-/import", dependencies=[Depends(needs("adapters.write"))])
async def import_form(page: CurrentPage) -> Response:
    """Ask for the files of a PEFT adapter, which the page's script sends to the API."""
    return page.show("adapter_import.html")
