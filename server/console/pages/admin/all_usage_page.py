"""/console/admin/usage: what each owner used."""

import time
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from server.api.app_services import CurrentServices
from server.console.organization.managed import ServerAdminOnly, address
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage

router = APIRouter(prefix="/console/admin/usage", route_class=PageRoute)

_PAGE = 50
_WINDOWS: Final = {
    "24h": (86_400, "24 hours"),
    "7d": (7 * 86_400, "7 days"),
    "30d": (30 * 86_400, "30 days"),
}


@router.get("")
def usage(
    page: CurrentPage,
    services: CurrentServices,
    _: ServerAdminOnly,
    window: Literal["24h", "7d", "30d"] = "24h",
    skip: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> HTMLResponse:
    """The owners with the most requests first."""
    since = int(time.time()) - _WINDOWS[window][0]
    book = services.tenants.usage
    totals, more = book.owners(since, _PAGE, skip)
    busiest = totals if not skip else book.owners(since, 1)[0]
    here = "/console/admin/usage"
    return page.show(
        "all_usage.html",
        totals=totals,
        most=busiest[0].requests if busiest else 0,
        window=window,
        windows=[(it, word) for it, (_, word) in _WINDOWS.items()],
        more=address(here, {"window": window, "skip": skip + _PAGE}) if more else "",
    )
