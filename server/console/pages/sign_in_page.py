"""/console/sign-in: takes an API key, or what a sign-in by a provider gives, for the cookie."""

from typing import Annotated, Final
from urllib.parse import quote, unquote, urlsplit

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response

from server.api.app_services import CurrentServices
from server.api.gate import client_address
from server.api.sign_in.session_cookie import SESSION, cookie_in, set_cookie
from server.api.sign_in.sign_in_endpoints import CurrentSignIn
from server.console.key_cookie import forget_key, keep_key
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage
from server.db.audit_trail import Actor, act_as
from server.errors import Unauthorized
from server.tenancy.principal import DEFAULT_OWNER
from server.tenancy.sign_in.signing_in import SigningIn

router = APIRouter(route_class=PageRoute)

_START: Final = "/console"
_SIGN_IN: Final = f"{_START}/sign-in"
_CHOOSE: Final = f"{_SIGN_IN}/choose"
_LONGEST_KEY = 512
_LONGEST_PAGE = 2048
_LONGEST_FOR_PROVIDER = 400  # of the 512 that /auth/login takes


@router.get(_SIGN_IN)
async def sign_in(page: CurrentPage, next: str = _START) -> Response:
    """Ask for a key, or for a sign-in by the provider."""
    if not page.services.keys.needed:
        return RedirectResponse(_START, 303)
    return _form(page, next)


@router.post(_SIGN_IN)
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
        return _form(page, next, problem=str(error))
    answer = RedirectResponse(_own_page(next), 303)
    keep_key(page.request, answer, key)
    return answer


@router.get(_CHOOSE)
async def choose(
    page: CurrentPage, services: CurrentServices, provider: CurrentSignIn, next: str = _START
) -> Response:
    """Ask for which owner somebody who came from the provider wants to work."""
    text = cookie_in(page.request, provider, SESSION) or ""
    try:
        found = await provider.session(text, services.threads.sign_ins.run)
    except Unauthorized:
        return _begin_again(provider)
    admin = found.user.role == "admin" and any(it.owner == DEFAULT_OWNER for it in found.members)
    return page.show("choose_owner.html", next=_own_page(next), found=found, admin=admin)


@router.post(_CHOOSE)
async def take_owner(
    page: CurrentPage,
    services: CurrentServices,
    provider: CurrentSignIn,
    owner: Annotated[str, Form(max_length=256)] = "",
    whole: Annotated[bool, Form()] = False,
    next: Annotated[str, Form()] = _START,
) -> Response:
    """Make the browser a key for an owner, or with `whole` for the whole server."""
    text = cookie_in(page.request, provider, SESSION) or ""
    answer = RedirectResponse(_own_page(next), 303)
    try:
        key = await services.threads.sign_ins.run(provider.console_key, text, owner, whole)
    except Unauthorized:
        return _begin_again(provider)
    keep_key(page.request, answer, key)
    return answer


@router.post(f"{_SIGN_IN}/out")
async def sign_out(page: CurrentPage, services: CurrentServices) -> Response:
    """Have the browser forget its key. One that was made for it is revoked; a key that was pasted
    stays good for programs."""
    answer = RedirectResponse(_SIGN_IN, 303)
    forget_key(page.request, answer)
    provider = services.signing_in
    text = None if provider is None else cookie_in(page.request, provider, SESSION)
    if provider is not None and text is not None:
        act_as(Actor(address=client_address(page.request.scope)))
        await provider.end(text, services.threads.sign_ins.run)
        set_cookie(answer, provider, SESSION, "", 0)
    return answer


def _form(page: CurrentPage, next: str, problem: str = "") -> Response:
    next, provider = _own_page(next), page.services.signing_in
    back = f"{_CHOOSE}?next={quote(next, safe='')}"
    if provider is not None and cookie_in(page.request, provider, SESSION) is None:
        asked = back if len(back) <= _LONGEST_FOR_PROVIDER else _CHOOSE
        back = f"/auth/login?next={quote(asked, safe='')}"
    return page.show(
        "sign_in.html",
        status=401 if problem else 200,
        next=next,
        problem=problem,
        provider=None if provider is None else back,
    )


def _begin_again(provider: SigningIn) -> Response:
    """The session has ended, and its cookie would lead nowhere."""
    answer = RedirectResponse(_SIGN_IN, 303)
    set_cookie(answer, provider, SESSION, "", 0)
    return answer


def _own_page(path: str) -> str:
    """A page of the console: a link must not lead elsewhere after the sign-in."""
    if not path.isascii() or not path.isprintable() or "\\" in path or len(path) > _LONGEST_PAGE:
        return _START
    parts = urlsplit(path)
    place = unquote(parts.path).split("/")
    ours = not parts.scheme and not parts.netloc and ".." not in place and "sign-in" not in place
    inside = path == _START or path.startswith((f"{_START}/", f"{_START}?"))
    return path if ours and inside else _START
