"""/console/admin: what of the server runs, and what was started again."""

import asyncio

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from server.api.ops import operations_of
from server.console.organization.managed import ServerAdminOnly
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, Page

router = APIRouter(prefix="/console/admin", route_class=PageRoute)


@router.get("")
async def what_runs(page: CurrentPage, _: ServerAdminOnly) -> HTMLResponse:
    """The engines, the worker and the database, as /health and /ready tell."""
    return await _shown(page, "what_runs.html")


@router.get("/state")
async def state(page: CurrentPage, _: ServerAdminOnly) -> HTMLResponse:
    """The part of that page that changes."""
    return await _shown(page, "_what_runs.html")


async def _shown(page: Page, template: str) -> HTMLResponse:
    operations = operations_of(page.request)
    health, ready = await asyncio.gather(operations.health(), operations.readiness())
    return page.show(template, health=health, ready=ready)
