"""Counts model requests against their owner's limits, and tells of those in every answer's head.
Plain ASGI; knows no endpoint."""

from collections.abc import Collection
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.app_services import Services
from server.errors import VerandahError
from server.tenancy.limits.request_limits import TURN
from server.tenancy.principal import Principal


class RateCheck:
    """Counts each POST to `paths`, also one that turns out to be wrong, before its body is read.

    What the request has taken is given back when its answer ends, in whatever way.
    """

    def __init__(self, app: ASGIApp, services: Services, paths: Collection[str]) -> None:
        self._app = app
        self._services = services
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counts = scope["type"] == "http" and scope["method"] == "POST"
        if not counts or scope["path"] not in self._paths:
            return await self._app(scope, receive, send)
        services = self._services
        owner = cast(Principal, scope["verandah.principal"]).owner
        turn = services.limits.turn(owner, services.threads.limits.run)

        started = False

        async def send_with_limits(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *turn.headers()]
            await send(message)

        TURN.set(turn)
        try:
            await turn.enter()
        except VerandahError as error:
            turn.leave()
            services.metrics.rejected("rate_limit")
            return await services.describe(error).response()(scope, receive, send_with_limits)
        try:
            await self._app(scope, receive, send_with_limits)
        except Exception as error:
            if not started:
                await services.describe(error).response()(scope, receive, send_with_limits)
            raise  # to be logged
        finally:
            turn.leave()
