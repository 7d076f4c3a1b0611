"""The cookie in which a browser keeps an API key, while it is open."""

from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from server.errors import Forbidden
from server.tenancy.sign_in.addresses import is_this_machine

_PATH: Final = "/console"
_NAME: Final = "verandah_console"
_SECURE_NAME: Final = f"__Secure-{_NAME}"
"""Browsers keep a cookie of this name only if it came over TLS."""


def key_in(request: Request) -> str | None:
    """The API key of a browser that is signed in."""
    return request.cookies.get(_SECURE_NAME) or request.cookies.get(_NAME) or None


def keep_key(request: Request, response: Response, key: str) -> None:
    """Have the browser keep `key`, for these pages alone and until it is closed.

    Raises:
        Forbidden: it came over a connection that others can read.
    """
    secure = _is_secure(request)
    if not secure and not is_this_machine(request.url.hostname or ""):
        raise Forbidden(
            "this page came over plain HTTP from another machine, where anybody between can read "
            "the key: put a proxy with TLS in front of the server, or use an SSH tunnel to it"
        )
    name = _SECURE_NAME if secure else _NAME
    response.set_cookie(name, key, path=_PATH, secure=secure, httponly=True, samesite="strict")


def forget_key(request: Request, response: Response) -> None:
    """Have the browser forget its key."""
    for name, secure in ((_SECURE_NAME, True), (_NAME, False)):
        if name in request.cookies:
            response.delete_cookie(
                name, path=_PATH, secure=secure, httponly=True, samesite="strict"
            )


def _is_secure(request: Request) -> bool:
    """Whether the browser speaks TLS: only it knows, where a proxy stands in between."""
    origin = urlsplit(request.headers.get("origin", ""))
    return origin.scheme == "https" or request.url.scheme == "https"
