"""/console/usage: what was used, by the hour or day, and the limits beside it."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from server.api.app_services import CurrentServices
from server.api.organization.limit_use_endpoints import get_limit_use
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, needs
from server.console.watching.limit_rows import limit_rows
from server.console.watching.usage_report import PERIODS, Asked, csv_pages, groups_of, report

router = APIRouter(route_class=PageRoute, dependencies=[Depends(needs("usage.read"))])

_MOST_OFFERED = 100


async def _asked(
    page: CurrentPage, period: str = "7d", by: str = "model", owner: str = ""
) -> Asked:
    return Asked.of(page, period, by, owner.strip())


Wanted = Annotated[Asked, Depends(_asked)]


@router.get("/console/usage")
def usage(page: CurrentPage, services: CurrentServices, asked: Wanted) -> HTMLResponse:
    """Requests and tokens of a period."""
    offered = []
    if asked.owner:
        services.tenants.owners.get(asked.owner)  # raises NotFound
    if page.known.server_admin:
        offered = [it.id for it in services.tenants.owners.list(limit=_MOST_OFFERED)[0]]
    return page.show(
        "usage.html",
        report=report(page, asked),
        periods=PERIODS,
        groups=groups_of(page),
        owners=offered,
    )


@router.get("/console/usage/limits")
def limits(page: CurrentPage, services: CurrentServices, asked: Wanted) -> HTMLResponse:
    """What an owner may use, and does use now."""
    if asked.owner:
        services.tenants.owners.get(asked.owner)  # raises NotFound
    told = get_limit_use(services, page.known, asked.owner)
    template = "_usage_limits.html" if page.partial else "usage_limits.html"
    return page.show(template, rows=limit_rows(told), owner=told["project_id"])


@router.get("/console/usage/csv")
async def table(page: CurrentPage, asked: Wanted) -> Response:
    """The same as CSV, as `verandah usage --csv` prints it."""
    pages = csv_pages(page, asked)
    first = await anext(pages)  # so that a refusal is a page, and no file that breaks off

    async def texts() -> AsyncIterator[str]:
        yield first
        async for text in pages:
            yield text

    day = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d")
    name = f"usage-{asked.period.key}-{day}.csv"
    return StreamingResponse(
        texts(),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )
