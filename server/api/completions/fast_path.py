"""A fast path around FastAPI for valid completion requests. Knows neither kind of completion.

FastAPI's routing, exit stacks and dependencies take longer than all the rest of a request. So the
body of a valid POST goes straight to the endpoint's function. FastAPI answers everything else.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import Response
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters_store.store_errors import StoreError
from server.api.app_services import Services
from server.api.completions.delivery import StreamWaker
from server.errors import VerandahError

_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True)
class FastRoute:
    """The body of a path, and its function: `answer(services, waker, owner, body, receive)`, where
    `receive` reports only that the client disconnects.
    """

    body: type[BaseModel]
    answer: Callable[..., Awaitable[Response]]


class FastPath:
    """Answers valid requests to the paths in `routes`, and leaves all others to `app`."""

    def __init__(
        self, app: ASGIApp, services: Services, waker: StreamWaker, routes: Mapping[str, FastRoute]
    ) -> None:
        self._app = app
        self._services = services
        self._waker = waker
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] != "POST" or _JSON not in scope["headers"]:
            return await self._app(scope, receive, send)
        content = await _read(receive)
        if content is None:
            return None  # the client has disconnected
        try:
            body = route.body.model_validate(json.loads(content))
        except (ValueError, RecursionError, VerandahError):  # pydantic's are ValueErrors
            return await self._app(scope, _replayed(content, receive), send)
        try:
            owner = scope["verandah.owner"]
            response = await route.answer(self._services, self._waker, owner, body, receive)
        except (VerandahError, StoreError) as error:
            response = self._services.describe(error).response()
        return await response(scope, receive, send)


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None if the client disconnects before its end."""
    pieces: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body, which was read already, once more."""
    replayed = False

    async def first_body() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first_body
