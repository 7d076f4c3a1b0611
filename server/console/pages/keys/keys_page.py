"""/console/keys: an owner's keys. Makes, shows, changes, rotates and revokes them."""

import time
from typing import Annotated, cast

from fastapi import APIRouter, Form, Query
from fastapi.responses import HTMLResponse, Response

from server.api.app_services import CurrentServices
from server.api.jobs.job_documents import Document
from server.api.organization import key_endpoints
from server.console.organization.key_words import (
    GRACES,
    LIVES,
    SCOPE_WORDS,
    USUAL_LIFE_S,
    chosen_scopes,
    first_lines,
    life_of,
    server_address,
)
from server.console.organization.managed import MANAGERS, CurrentManaged, Managed, body_of
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage, Page

router = APIRouter(prefix="/console/keys", route_class=PageRoute, dependencies=[*MANAGERS])

_PAGE = 50
_SAID = {
    "changed": "The key is changed. Every process of the server knows within a second.",
    "revoked": "The key is revoked. Every process of the server refuses it within a second.",
}

Scopes = Annotated[list[str], Form()]
Life = Annotated[int, Form()]
Word = Annotated[str, Query(max_length=16)]


@router.get("")
def keys(
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    after: str = "",
    said: Word = "",
) -> HTMLResponse:
    """The keys that were not revoked, the newest first, and a form for another."""
    book, people = services.tenants.keys, services.tenants.people
    found, more = book.list(managed.owner, after=after or None, limit=_PAGE, newest_first=True)
    members, _ = people.members(managed.owner, service=False, limit=100)
    return page.show(
        "keys.html",
        managed=managed,
        keys=found,
        more=found[-1].id if more else "",
        first=not after,
        members=members,
        said=_SAID.get(said, ""),
        now=time.time(),
        scope_words=SCOPE_WORDS,
        lives=LIVES,
        usual_life=USUAL_LIFE_S,
    )


@router.post("")
def create(
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    name: Annotated[str, Form()] = "",
    scopes: Scopes = [],  # noqa: B006  FastAPI copies it
    life: Life = USUAL_LIFE_S,
    user: Annotated[str, Form()] = "",
) -> HTMLResponse:
    """Make a key, and show its value this once."""
    wanted = body_of(
        key_endpoints.KeyCreation,
        name=name,
        scopes=chosen_scopes(scopes),
        expires_in_seconds=life_of(life),
        user_id=user or None,
    )
    made = key_endpoints.create_key(wanted, services, page.known, managed.owner)
    return shown_once(page, managed.link("/console/keys"), made)


def shown_once(page: Page, back: str, made: Document) -> HTMLResponse:
    """The value of a new key, with lines that try it."""
    value, scopes = cast(str, made["value"]), cast(list[str], made.get("scopes", [*SCOPE_WORDS]))
    server, model = server_address(page.request), page.services.base.id
    curl, python = first_lines(server, value, scopes, model)
    template = "_new_key.html" if page.partial else "new_key.html"
    return page.show(template, made=made, curl=curl, python=python, back=back)


@router.get("/{key_id}")
def key(
    key_id: str,
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    said: Word = "",
) -> HTMLResponse:
    """One key: what it may do, and what can be done with it."""
    found = services.tenants.keys.get(managed.owner, key_id)
    return page.show(
        "key.html",
        managed=managed,
        key=found,
        mine=found.id == page.known.key,
        said=_SAID.get(said, ""),
        now=time.time(),
        scope_words=SCOPE_WORDS,
        lives=LIVES,
        graces=GRACES,
    )


@router.post("/{key_id}")
def change(
    key_id: str,
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    scopes: Scopes = [],  # noqa: B006  FastAPI copies it
    life: Life = 0,
) -> Response:
    """Change what a key may do, and with a life how long it is good."""
    wanted = body_of(
        key_endpoints.KeyChange, scopes=chosen_scopes(scopes), expires_in_seconds=life_of(life)
    )
    key_endpoints.change_key(key_id, wanted, services, managed.owner)
    return page.go_to(_link(managed, key_id, "changed"))


@router.post("/{key_id}/rotate")
def rotate(
    key_id: str,
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    grace: Annotated[int, Form()] = 86_400,
) -> HTMLResponse:
    """Make a key with the same rights, and let this one expire after the grace."""
    wanted = body_of(key_endpoints.KeyRotation, grace_seconds=grace)
    made = key_endpoints.rotate_key(key_id, wanted, services, page.known, managed.owner)
    return shown_once(page, managed.link("/console/keys"), made)


@router.post("/{key_id}/revoke")
def revoke(
    key_id: str, page: CurrentPage, services: CurrentServices, managed: CurrentManaged
) -> Response:
    """Refuse a key from now on."""
    key_endpoints.revoke_key(key_id, services, managed.owner)
    return page.go_to(managed.link("/console/keys", said="revoked"))


def _link(managed: Managed, key_id: str, said: str) -> str:
    return managed.link(f"/console/keys/{key_id}", said=said)
