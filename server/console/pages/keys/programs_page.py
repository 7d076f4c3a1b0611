"""/console/keys/programs: the service accounts of an owner, and keys for them."""

from typing import Annotated, cast

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse, Response

from server.api.app_services import CurrentServices
from server.api.jobs.job_documents import Document
from server.api.organization import service_account_endpoints as accounts
from server.console.organization.key_words import (
    LIVES,
    SCOPE_WORDS,
    USUAL_LIFE_S,
    chosen_scopes,
    life_of,
)
from server.console.organization.managed import MANAGERS, CurrentManaged, body_of
from server.console.page_route import PageRoute
from server.console.pages.keys.keys_page import Life, Scopes, shown_once
from server.console.rendering import CurrentPage

router = APIRouter(prefix="/console/keys/programs", route_class=PageRoute, dependencies=[*MANAGERS])

_PAGE = 50
_HERE = "/console/keys/programs"

Label = Annotated[str, Form()]


@router.get("")
def programs(
    page: CurrentPage, services: CurrentServices, managed: CurrentManaged, after: str = ""
) -> HTMLResponse:
    """The service accounts, the oldest first."""
    found, more = services.tenants.people.members(
        managed.owner, service=True, after=after or None, limit=_PAGE
    )
    return page.show(
        "programs.html",
        managed=managed,
        members=found,
        more=found[-1].user.id if more else "",
        lives=LIVES,
        usual_life=USUAL_LIFE_S,
    )


@router.post("")
def create(
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    name: Label = "",
    life: Life = USUAL_LIFE_S,
) -> HTMLResponse:
    """Make a service account with its first key, and show its value this once."""
    wanted = body_of(accounts.ServiceAccountCreation, name=name, expires_in_seconds=life_of(life))
    made = accounts.create_service_account(wanted, services, page.known, managed.owner)
    return shown_once(page, managed.link(_HERE), cast(Document, made["api_key"]))


@router.get("/{user_id}")
def program(
    user_id: str, page: CurrentPage, services: CurrentServices, managed: CurrentManaged
) -> HTMLResponse:
    """One service account."""
    found = services.tenants.people.member(managed.owner, user_id, service=True)
    return page.show(
        "program.html",
        managed=managed,
        member=found,
        scope_words=SCOPE_WORDS,
        lives=LIVES,
        usual_life=USUAL_LIFE_S,
    )


@router.post("/{user_id}")
def change(
    user_id: str,
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    name: Label = "",
    role: Label = "",
) -> Response:
    """Change the name or the role."""
    wanted = body_of(accounts.ServiceAccountChange, name=name, role=role)
    accounts.change_service_account(user_id, wanted, services, managed.owner)
    return page.go_to(managed.link(f"{_HERE}/{user_id}"))


@router.post("/{user_id}/keys")
def create_key(
    user_id: str,
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    name: Label = "key",
    scopes: Scopes = [],  # noqa: B006  FastAPI copies it
    life: Life = USUAL_LIFE_S,
) -> HTMLResponse:
    """Make another key of the account, and show its value this once."""
    scopes = chosen_scopes(scopes)
    wanted = body_of(
        accounts.ServiceAccountKey, name=name, scopes=scopes, expires_in_seconds=life_of(life)
    )
    made = accounts.create_service_account_key(user_id, wanted, services, page.known, managed.owner)
    return shown_once(page, managed.link(_HERE), made | {"scopes": scopes})


@router.post("/{user_id}/delete")
def delete(
    user_id: str, page: CurrentPage, services: CurrentServices, managed: CurrentManaged
) -> Response:
    """Delete a service account, with its keys."""
    accounts.delete_service_account(user_id, services, managed.owner)
    return page.go_to(managed.link(_HERE))
