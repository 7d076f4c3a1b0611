"""Lets pages of other origins read answers (CORS). Plain ASGI; knows no endpoint and no keys."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from adapters_store.outside_values import shown
from server.api.gate import Describe
from server.errors import InvalidRequest

_METHODS = ("GET", "POST", "DELETE")
_EXPOSED = (
    *("x-request-id", "retry-after", "x-should-retry"),
    *(f"x-ratelimit-{of}-requests" for of in ("limit", "remaining", "reset")),
    *(f"x-ratelimit-{of}-tokens" for of in ("limit", "remaining", "reset")),
)


class CrossOrigin(CORSMiddleware):
    """Starlette's, whose refusals are errors as everywhere else. A preflight carries no key, so it
    is answered before keys are checked."""

    def __init__(self, app: ASGIApp, describe: Describe, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
        # Set and not given, because not every Starlette that is allowed takes it: browsers ask it
        # of a server at home for a page on the internet, which the origins allow or not.
        self.allow_private_network = True
        self._describe = describe

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        origin, method = request_headers["origin"], request_headers["access-control-request-method"]
        reason = f"method {shown(method)} is not allowed: send {', '.join(_METHODS)}"
        if not self.is_allowed_origin(origin):
            reason = (
                f"pages of {shown(origin)} may not use this server: start it with the origin in "
                "--allowed-origins"
            )
        refused = self._describe(InvalidRequest(reason)).response()
        refused.headers["vary"] = answer.headers["vary"]
        return refused
