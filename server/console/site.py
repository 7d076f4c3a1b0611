"""The console's routes, one module for each page."""

from fastapi import APIRouter, FastAPI, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from server.console.page_route import PageRoute
from server.console.pages import (
    adapter_page,
    adapters_page,
    compare_page,
    data_check_page,
    data_page,
    home_page,
    job_page,
    jobs_page,
    sign_in_page,
    usage_page,
)
from server.console.pages.admin import (
    admin_keys_page,
    all_adapters_page,
    all_usage_page,
    audit_page,
    owner_page,
    owners_page,
    what_runs_page,
)
from server.console.pages.keys import keys_page, members_page, programs_page
from server.console.rendering import STATIC, CurrentPage
from server.errors import NotFound

_PAGES = (
    *(home_page, sign_in_page, data_page, data_check_page, jobs_page, job_page, compare_page),
    *(adapters_page, adapter_page, usage_page),
    *(what_runs_page, owners_page, owner_page, all_usage_page, all_adapters_page),
    *(audit_page, admin_keys_page),
    *(members_page, programs_page, keys_page),  # last the one whose ids take the others' paths
)


def add_console(app: FastAPI) -> None:
    """Add all pages to an application. It needs `app.state.services` and `templates`."""
    app.mount("/console/static", _KeptFiles(directory=STATIC), name="console-static")
    for module in _PAGES:
        app.include_router(module.router, include_in_schema=False)
    app.include_router(_rest, include_in_schema=False)


class _KeptFiles(StaticFiles):
    """Files whose address changes with their bytes: browsers need not ask for them again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if b"v=" in scope.get("query_string", b""):
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


_rest = APIRouter(route_class=PageRoute)


@_rest.get("/console/{rest:path}")
async def missing(rest: str, page: CurrentPage) -> Response:
    """Any other address below /console."""
    raise NotFound(f"there is no page /console/{rest[:200]}: begin at /console")
