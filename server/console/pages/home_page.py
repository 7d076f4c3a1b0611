"""/console: what this server is and does, and the first steps."""

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse

from server.api.app_services import CurrentServices
from server.api.ops import operations_of
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage
from server.console.watching.home_figures import HomeFigures

router = APIRouter(route_class=PageRoute)


async def _health(page: CurrentPage) -> dict[str, object]:
    return await operations_of(page.request).health()


Health = Annotated[dict[str, object], Depends(_health)]


@router.get("/console")
def home(page: CurrentPage, services: CurrentServices, health: Health) -> HTMLResponse:
    """The first page."""
    files = page.may("files") and services.files.count_of(page.owner)
    jobs = page.may("jobs") and services.jobs.count_of(page.owner)
    return page.show(
        "home.html",
        context=services.engine.max_context,
        steps_done=(bool(files), bool(jobs)),
        live=HomeFigures.of(page, health),
    )


@router.get("/console/home/live")
def live(page: CurrentPage, services: CurrentServices, health: Health) -> HTMLResponse:
    """What changes on the first page, which asks for this again and again."""
    return page.show("_home_live.html", live=HomeFigures.of(page, health))
