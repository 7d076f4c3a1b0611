"""Lets browsers into the console, and nobody else through them. Plain ASGI; knows no page.

The cookie of a browser holds an API key. Here, and nowhere else, it becomes the `Authorization` of
a request. So keys, scopes, limits and usage hold for pages as they do for programs. What a page's
scripts ask of the API, they ask below /console/v1, which is /v1 with the cookie's key.
"""

from collections.abc import Callable
from html import escape
from typing import Final
from urllib.parse import quote

from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_body import ErrorBody
from server.api.gate import actor_of
from server.console.key_cookie import host_of, key_in
from server.db.audit_trail import act_as
from server.errors import Forbidden, Unauthorized, VerandahError
from server.tenancy.keys import Keys, Run
from server.tenancy.sign_in.addresses import is_this_machine

ROOT: Final = "/console"
SIGN_IN: Final = f"{ROOT}/sign-in"
_API: Final = f"{ROOT}/v1/"
_OPEN: Final = (f"{ROOT}/static/", f"{SIGN_IN}/")  # what a browser without a key may see
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_ONCE_MORE: Final = (
    '<!doctype html><meta charset="utf-8"><title>Verandah</title>'
    '<meta http-equiv="refresh" content="0; url={page}"><a href="{page}">Go on to the page</a>'
)
_SAFE_METHODS: Final = ("GET", "HEAD")

Describe = Callable[[Exception], ErrorBody]


class ConsoleGate:
    """Passes requests of pages on to `app`, with the principal of the browser's key."""

    def __init__(self, app: ASGIApp, keys: Keys, run: Run, describe: Describe) -> None:
        self._app = app
        self._pages = GZipMiddleware(app, minimum_size=1024)
        self._keys = keys
        self._run = run
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path != ROOT and not path.startswith(f"{ROOT}/"):
            return await self._app(scope, receive, send)
        request = Request(scope)
        send = _with_headers(send)
        try:
            self._check_sender(request)
            # Without keys there is no sign-in: what another server of this machine left is no key.
            key = key_in(request) if self._keys.needed else None
            _exchange(scope, key)
            if path.startswith(_API):
                scope["path"] = path.removeprefix(ROOT)
                return await self._app(scope, receive, send)
            if path != SIGN_IN and not path.startswith(_OPEN):
                header = None if key is None else f"Bearer {key}"
                principal = await self._keys.principal(header, self._run)
                scope["verandah.principal"] = principal
                act_as(actor_of(principal, scope))
        except VerandahError as error:
            return await self._refusal(request, error)(scope, receive, send)
        await self._pages(scope, receive, send)

    def _check_sender(self, request: Request) -> None:
        """Refuse what another site's page sends, and a name that is not this server's.

        Raises:
            Forbidden: it may be another site that asks, in the name of whoever uses the browser.
        """
        if not self._keys.needed and _from_here(request) and not _named_here(request):
            raise Forbidden(
                "without an API key, the console answers on this machine's own names alone, since "
                "any site could use it by a name of its own: open it at http://127.0.0.1, or start "
                "the server with an API key"
            )
        if not _is_of_own_page(request):
            raise Forbidden(
                "another site's page sent this request, or an old browser that does not say which "
                "page did: open the console and do it there"
            )

    def _refusal(self, request: Request, error: VerandahError) -> Response:
        """Who is not signed in is led there, and back to the page afterwards."""
        lead = isinstance(error, Unauthorized) and not request.scope["path"].startswith("/v1/")
        if not lead:
            return self._describe(error).response()
        if request.headers.get("hx-request"):
            return Response(status_code=204, headers={"hx-redirect": SIGN_IN})
        if request.method not in _SAFE_METHODS:
            return RedirectResponse(SIGN_IN, 303)
        query = request.scope["query_string"].decode("latin-1")
        page = quote(request.scope["path"]) + (f"?{query}" if query else "")
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # Browsers leave a strict cookie out where a link of another site leads here. The page
            # loads itself once more, and then it is this site that asks.
            return HTMLResponse(_ONCE_MORE.format(page=escape(page)))
        return RedirectResponse(f"{SIGN_IN}?next={quote(page, safe='')}", 303)


def _is_of_own_page(request: Request) -> bool:
    """Whether a page of this server sent it, as far as the browser tells; a page may be opened from
    anywhere."""
    site = request.headers.get("sec-fetch-site")
    if request.method in _SAFE_METHODS:
        opened = request.headers.get("sec-fetch-mode") == "navigate"
        return site in (None, "same-origin", "none") or opened
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] == request.headers.get("host")


def _from_here(request: Request) -> bool:
    return request.client is not None and is_this_machine(request.client.host)


def _named_here(request: Request) -> bool:
    return is_this_machine(host_of(request))


def _exchange(scope: Scope, key: str | None) -> None:
    """Put the cookie's key where the API looks for one; a page sends none itself. The API sees no
    cookie, and pages need that of a provider's sign-in."""
    api = scope["path"].startswith(_API)
    dropped = (b"authorization", b"cookie") if api else (b"authorization",)
    scope["headers"] = [it for it in scope["headers"] if it[0] not in dropped]
    if key is not None:
        scope["headers"].append((b"authorization", f"Bearer {key}".encode("latin-1")))


def _with_headers(send: Send) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=[*message.get("headers", ())])
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
            message["headers"] = headers.raw
        await send(message)

    return send_with
