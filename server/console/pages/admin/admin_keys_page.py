"""/console/admin/keys: the keys of the server's admins."""

import time
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse, Response

from server.api.app_services import CurrentServices
from server.api.organization import admin_key_endpoints
from server.console.organization.key_words import LIVES, USUAL_LIFE_S, life_of
from server.console.organization.managed import ServerAdminOnly, body_of
from server.console.page_route import PageRoute
from server.console.pages.keys.keys_page import Life, shown_once
from server.console.rendering import CurrentPage
from server.tenancy.found_key import ADMIN
from server.tenancy.principal import DEFAULT_OWNER

router = APIRouter(prefix="/console/admin/keys", route_class=PageRoute)

_PAGE = 50
_HERE = "/console/admin/keys"


@router.get("")
def admin_keys(
    page: CurrentPage, services: CurrentServices, _: ServerAdminOnly, after: str = ""
) -> HTMLResponse:
    """The keys that were not revoked, the newest first."""
    found, more = services.tenants.keys.list(
        DEFAULT_OWNER, kind=ADMIN, after=after or None, limit=_PAGE, newest_first=True
    )
    return page.show(
        "admin_keys.html",
        keys=found,
        more=found[-1].id if more else "",
        now=time.time(),
        lives=LIVES,
        usual_life=USUAL_LIFE_S,
    )


@router.post("")
def create(
    page: CurrentPage,
    services: CurrentServices,
    admin: ServerAdminOnly,
    name: Annotated[str, Form()] = "",
    life: Life = USUAL_LIFE_S,
) -> HTMLResponse:
    """Make a key that may do everything, and show its value this once."""
    wanted = body_of(
        admin_key_endpoints.AdminKeyCreation, name=name, expires_in_seconds=life_of(life)
    )
    return shown_once(page, _HERE, admin_key_endpoints.create_admin_key(wanted, services, admin))


@router.post("/{key_id}/revoke")
def revoke(
    key_id: str, page: CurrentPage, services: CurrentServices, admin: ServerAdminOnly
) -> Response:
    """Refuse a key from now on."""
    admin_key_endpoints.revoke_admin_key(key_id, services, admin)
    return page.go_to(_HERE)
