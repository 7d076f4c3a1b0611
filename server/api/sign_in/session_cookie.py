"""The cookies of a sign-in: what the browser keeps until it comes back, and its session."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from server.tenancy.sign_in.signing_in import SigningIn

PENDING: Final = "verandah_sign_in"
SESSION: Final = "verandah_session"


def cookie_in(request: Request, sign_in: SigningIn, name: str) -> str | None:
    return request.cookies.get(_named(sign_in, name))


def set_cookie(answer: Response, sign_in: SigningIn, name: str, value: str, life_s: int) -> None:
    """Have the browser keep `value` for so long; 0: forget it."""
    answer.set_cookie(
        _named(sign_in, name),
        value,
        max_age=life_s,
        path="/",
        secure=_secure(sign_in),
        httponly=True,
        samesite="lax",  # the provider sends the browser back with a link of its own site
    )


def _named(sign_in: SigningIn, name: str) -> str:
    """Browsers keep a cookie of this prefix only for the very host that sent it, over TLS."""
    return f"__Host-{name}" if _secure(sign_in) else name


def _secure(sign_in: SigningIn) -> bool:
    """Plain HTTP is allowed on the loopback address alone, where not all browsers keep others."""
    return sign_in.public_url.startswith("https:")
