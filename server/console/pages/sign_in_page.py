"""/console/sign-in: takes an API key, or what a sign-in by a provider gives, for the cookie."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response

from server.api.app_services import CurrentServices
from server.console.key_cookie import forget_key, keep_key
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage
from server.errors import Unauthorized

router = APIRouter(route_class=PageRoute)

_START = "/console"
_LONGEST_KEY = 512


@router.get("/console/sign-in")
async def sign_in(page: CurrentPage, next: str = _START) -> Response:
    """Ask for a key."""
    if not page.services.keys.needed:
        return RedirectResponse(_START, 303)
    return page.show("sign_in.html", next=_own_page(next), problem="")


@router.post("/console/sign-in")
async def take_key(
    page: CurrentPage,
    services: CurrentServices,
    key: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = _START,
) -> Response:
    """Try a key, and keep it in the browser if it opens anything."""
    key = key.strip()
    try:
        if not key.isascii() or not key.isprintable() or len(key) > _LONGEST_KEY:
            raise Unauthorized("that is no API key of this server: keys are short and plain text")
        if not key:
            raise Unauthorized("paste an API key: whoever runs this server can make you one")
        await services.keys.principal(f"Bearer {key}", services.threads.keys.run)
    except Unauthorized as error:
        return page.show("sign_in.html", status=401, next=_own_page(next), problem=str(error))
    answer = RedirectResponse(_own_page(next), 303)
    keep_key(page.request, answer, key)
    return answer


@router.post("/console/sign-in/out")
async def sign_out(page: CurrentPage) -> Response:
    """Have the browser forget its key, which stays good for programs."""
    answer = RedirectResponse("/console/sign-in", 303)
    forget_key(page.request, answer)
    return answer


def _own_page(path: str) -> str:
    """A page of the console: a link must not lead elsewhere after the sign-in."""
    parts = urlsplit(path) if path.isascii() and path.isprintable() else None
    ours = parts is not None and not parts.scheme and not parts.netloc and "\\" not in path
    inside = path == _START or path.startswith((f"{_START}/", f"{_START}?"))
    return path if ours and inside and len(path) <= 2048 else _START
