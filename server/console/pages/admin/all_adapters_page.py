"""/console/admin/adapters: the largest and the busiest adapters of all owners."""

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from server.api.adapters.held_adapter_endpoints import CurrentCensus, list_held_adapters
from server.api.app_services import CurrentServices
from server.console.organization.managed import ServerAdminOnly
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage

router = APIRouter(prefix="/console/admin/adapters", route_class=PageRoute)

_MOST = 50
_DAYS = 7


@router.get("")
async def adapters(
    page: CurrentPage,
    services: CurrentServices,
    census: CurrentCensus,
    admin: ServerAdminOnly,
    order: Literal["bytes", "requests"] = "bytes",
) -> HTMLResponse:
    """The top 50. The part within is asked for again while the first count is under way."""
    held = await list_held_adapters(services, census, admin, order, _DAYS, None, _MOST)
    template = "_all_adapters.html" if page.partial else "all_adapters.html"
    return page.show(template, held=held, order=order, days=_DAYS)
