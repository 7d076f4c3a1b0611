"""The short way to the two completions: what FastAPI does for a good request, for less.

Its routing, exit stacks and dependencies take longer than all the rest of a request. So a POST of
good JSON goes straight to the function; whatever else comes to these paths, FastAPI answers.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import Response
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters_store.store_errors import StoreError
from server.api.app_services import Services
from server.api.completions.delivery import Wakes
from server.errors import VerandahError

_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True)
class FastRoute:
    """What a path's bodies are, and who answers them: `answer(parts, wakes, owner, body, receive)`,
    where `receive` tells only when the client goes away.
    """

    body: type[BaseModel]
    answer: Callable[..., Awaitable[Response]]


class FastPath:
    """Answers good requests to `ways`, by their paths, and leaves the rest to `app`."""

    def __init__(
        self, app: ASGIApp, services: Services, wakes: Wakes, ways: Mapping[str, FastRoute]
    ) -> None:
        self._app = app
        self._services = services
        self._wakes = wakes
        self._ways = ways

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = self._ways.get(scope["path"]) if scope["type"] == "http" else None
        if way is None or scope["method"] != "POST" or _JSON not in scope["headers"]:
            return await self._app(scope, receive, send)
        read = await _read(receive)
        if read is None:
            return None  # the client is gone
        try:
            body = way.body.model_validate(json.loads(read))
        except (ValueError, RecursionError, VerandahError):  # pydantic's are ValueErrors
            return await self._app(scope, _again(read, receive), send)
        try:
            owner = scope["verandah.owner"]
            response = await way.answer(self._services, self._wakes, owner, body, receive)
        except (VerandahError, StoreError) as error:
            response = self._services.describe(error).response()
        return await response(scope, receive, send)


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None if the client goes away before it has sent it."""
    pieces: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with a body that was read already."""
    told = False

    async def first_body() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first_body
