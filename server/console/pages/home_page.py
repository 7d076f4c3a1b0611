"""/console: what this server is and does, and the first steps."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage

router = APIRouter(route_class=PageRoute)


@router.get("/console")
async def home(page: CurrentPage) -> HTMLResponse:
    """The first page."""
    return page.show("home.html")
