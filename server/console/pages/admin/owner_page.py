"""/console/admin/owners/{id}: one owner. Limits, rename, archive, delete."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, Response

from server.api.adapters.held_adapter_endpoints import CurrentCensus
from server.api.app_services import CurrentServices
from server.api.organization import project_endpoints
from server.console.organization.limit_form import limit_fields, sent_limits
from server.console.organization.managed import ServerAdminOnly, body_of
from server.console.organization.owner_use import owner_use
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage
from server.errors import InvalidRequest
from server.tenancy.principal import DEFAULT_OWNER

router = APIRouter(prefix="/console/admin/owners/{owner}", route_class=PageRoute)

_SHOWN = 20


async def _form(request: Request) -> dict[str, str]:
    return {name: str(value) for name, value in (await request.form()).items()}


FormFields = Annotated[dict[str, str], Depends(_form)]


@router.get("")
async def owner_page(
    owner: str,
    page: CurrentPage,
    services: CurrentServices,
    census: CurrentCensus,
    admin: ServerAdminOnly,
) -> HTMLResponse:
    """What an owner may use and uses."""
    counted = await census.last()
    use = await services.threads.reading.run(owner_use, services, admin, owner, counted, _SHOWN)
    return page.show(
        "owner.html",
        use=use,
        owner=use.owner,
        limits=limit_fields(use.limits, services.tenants.limits.defaults, use.used),
        counted=counted,
        default=owner == DEFAULT_OWNER,
    )


@router.post("/name")
def rename(
    owner: str,
    page: CurrentPage,
    services: CurrentServices,
    admin: ServerAdminOnly,
    name: Annotated[str, Form()] = "",
) -> Response:
    """Change the name that people see."""
    wanted = body_of(project_endpoints.ProjectChange, name=name)
    project_endpoints.change_project(wanted, services, admin, owner)
    return page.go_to(_here(owner))


@router.post("/limits")
def limit(
    owner: str,
    page: CurrentPage,
    services: CurrentServices,
    admin: ServerAdminOnly,
    fields: FormFields,
) -> Response:
    """Set what the owner may use."""
    book = services.tenants.limits
    changed = sent_limits(fields, asdict(book.get(owner)), asdict(book.defaults))
    if changed:
        wanted = body_of(project_endpoints.ProjectChange, limits=changed)
        project_endpoints.change_project(wanted, services, admin, owner)
    return page.go_to(_here(owner))


@router.post("/archive")
def archive(
    owner: str, page: CurrentPage, services: CurrentServices, admin: ServerAdminOnly
) -> Response:
    """Refuse the owner's keys, and delete nothing."""
    project_endpoints.archive_project(services, admin, owner)
    return page.go_to(_here(owner))


@router.post("/delete")
def delete(
    owner: str,
    page: CurrentPage,
    services: CurrentServices,
    admin: ServerAdminOnly,
    typed: Annotated[str, Form()] = "",
    export: Annotated[str, Form()] = "",
) -> Response:
    """Begin to delete the owner, if its id was typed."""
    if typed.strip() != owner:
        raise InvalidRequest(
            f"what was typed is not {owner}, so nothing is deleted: type the id to go on",
            param="typed",
        )
    project_endpoints.delete_project(services, admin, owner, export.strip() or None)
    return page.go_to(_here(owner))


@router.get("/deletion")
def deletion(
    owner: str, page: CurrentPage, services: CurrentServices, admin: ServerAdminOnly
) -> HTMLResponse:
    """How far a deletion is."""
    told = project_endpoints.get_deletion(services, admin, owner)
    return page.show("_deletion.html", deletion=told)


def _here(owner: str) -> str:
    return f"/console/admin/owners/{owner}"
