"""The cookie in which a browser keeps an API key, while it is open."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from server.errors import Forbidden
from server.tenancy.sign_in.addresses import is_this_machine

_NAME: Final = "verandah_console"
_SECURE_NAME: Final = f"__Host-{_NAME}"
"""Browsers take a cookie of this name only over TLS and from this very host: neither a site with a
neighbouring name nor somebody on the line can set one. They ask for the path / in return."""


def key_in(request: Request) -> str | None:
    """The API key of a browser that is signed in."""
    return next((key for it in _names(request) if (key := request.cookies.get(it))), None)


def keep_key(request: Request, response: Response, key: str) -> None:
    """Have the browser keep `key`, for this server alone and until it is closed.

    Raises:
        Forbidden: it came over a connection that others can read.
    """
    secure = _is_secure(request)
    if not secure and not is_this_machine(host_of(request)):
        raise Forbidden(
            "this page came over plain HTTP from another machine, where anybody between can read "
            "the key: put a proxy with TLS in front of the server, or use an SSH tunnel to it"
        )
    name = _SECURE_NAME if secure else _plain_name(request)
    response.set_cookie(
        name, key, path=_path(name), secure=secure, httponly=True, samesite="strict"
    )


def forget_key(request: Request, response: Response) -> None:
    """Have the browser forget its key."""
    for name in _names(request):
        if name in request.cookies:
            secure = name == _SECURE_NAME
            response.delete_cookie(
                name, path=_path(name), secure=secure, httponly=True, samesite="strict"
            )


def host_of(request: Request) -> str:
    """The name by which the browser calls this server; empty if it is none."""
    return _place(request)[0]


def _place(request: Request) -> tuple[str, int]:
    try:
        return request.url.hostname or "", request.url.port or 80
    except ValueError:  # a Host header such as `[` or `a:b`
        return "", 80


def _names(request: Request) -> tuple[str, ...]:
    """Where the key may be. The plain cookie counts where alone it is set: anybody on the line may
    set one for a site."""
    here = is_this_machine(host_of(request))
    return (_SECURE_NAME, _plain_name(request)) if here else (_SECURE_NAME,)


def _plain_name(request: Request) -> str:
    """Cookies do not know ports: two servers of this machine would sign each other's users out."""
    return f"{_NAME}_{_place(request)[1]}"


def _path(name: str) -> str:
    return "/" if name == _SECURE_NAME else "/console"


def _is_secure(request: Request) -> bool:
    """Whether the browser speaks TLS: only it knows, where a proxy stands in between."""
    origin = request.headers.get("origin", "")
    return origin.startswith("https://") or request.scope["scheme"] == "https"
