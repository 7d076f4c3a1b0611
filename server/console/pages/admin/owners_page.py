"""/console/admin/owners: all owners, a search, and a form for another."""

from typing import Annotated

from fastapi import APIRouter, Form, Query
from fastapi.responses import HTMLResponse, Response

from server.api.app_services import CurrentServices
from server.api.organization import project_endpoints
from server.console.organization.managed import ServerAdminOnly, address, body_of
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage

router = APIRouter(prefix="/console/admin/owners", route_class=PageRoute)

_PAGE = 50


@router.get("")
def owners(
    page: CurrentPage,
    services: CurrentServices,
    _: ServerAdminOnly,
    search: Annotated[str, Query(max_length=256)] = "",
    after: str = "",
    archived: bool = False,
) -> HTMLResponse:
    """A page of owners by id."""
    found, more = services.tenants.owners.list(
        after=after or None, limit=_PAGE, archived=archived, search=search
    )
    said = {"search": search, "archived": "true" if archived else ""}
    here = "/console/admin/owners"
    return page.show(
        "owners.html",
        owners=found,
        limits=services.tenants.limits.of_all([it.id for it in found]),
        search=search,
        archived=archived,
        more=address(here, said | {"after": found[-1].id}) if more else "",
    )


@router.post("")
def create(
    page: CurrentPage,
    services: CurrentServices,
    admin: ServerAdminOnly,
    name: Annotated[str, Form()] = "",
) -> Response:
    """Make an owner."""
    wanted = body_of(project_endpoints.ProjectCreation, name=name)
    made = project_endpoints.create_project(wanted, services, admin)
    return page.go_to(f"/console/admin/owners/{made['id']}")
