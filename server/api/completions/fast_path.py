"""Reads JSON bodies, and leads requests past FastAPI. Knows no endpoint.

FastAPI's routing, exit stacks and dependencies take longer than all the rest of a request. So a
body goes straight to the endpoint's function. FastAPI answers everything else; it reads a body
again, which by then is known to be JSON with few values.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters_store.outside_values import BadJson, read_json
from adapters_store.store_errors import StoreError
from server.api.app_services import Services
from server.api.completions.delivery import StreamWaker
from server.errors import InvalidJson, VerandahError
from server.refused_fields import refusal

_JSON = (b"content-type", b"application/json")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONG_BODY = 32 * 1024  # to read it takes longer than to change threads, and others wait meanwhile


@dataclass(frozen=True)
class FastRoute:
    """The body of a path, and its function: `answer(services, waker, owner, body, receive)`, where
    `receive` reports only that the client disconnects.
    """

    body: type[BaseModel]
    answer: Callable[..., Awaitable[Response]]


class FastPath:
    """Answers requests to the paths in `routes`, and leaves all others to `app`."""

    def __init__(
        self, app: ASGIApp, services: Services, waker: StreamWaker, routes: Mapping[str, FastRoute]
    ) -> None:
        self._app = app
        self._services = services
        self._waker = waker
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _holds_json(scope):
            return await self._app(scope, receive, send)
        content = await _read(receive)
        if content is None:
            return None  # the client has disconnected
        fast = (
            scope["method"] == "POST"
            and _JSON in scope["headers"]
            and content
            and not scope.get("query_string")  # the endpoint refuses what it does not know
        )
        route = self._routes.get(scope["path"]) if fast else None
        try:
            if len(content) > _LONG_BODY:
                body = await run_in_threadpool(_checked, content, route)
            else:
                body = _checked(content, route)
            if route is None or body is None:
                return await self._app(scope, _replayed(content, receive), send)
            del content
            owner = scope["verandah.principal"].owner
            response = await route.answer(self._services, self._waker, owner, body, receive)
        except (VerandahError, StoreError) as error:
            response = self._services.describe(error).response()
        return await response(scope, receive, send)


def _checked(content: bytes, route: FastRoute | None) -> BaseModel | None:
    """The body of a route. What is JSON for no route is None.

    Raises:
        InvalidJson: it is no JSON.
        VerandahError: it is not what the route takes.
    """
    try:
        value = read_json(content.removeprefix(_BYTE_ORDER_MARK)) if content else None
    except BadJson as error:
        raise InvalidJson(f"the body {error}") from error
    try:
        return None if route is None else route.body.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        for problem in problems:
            problem["loc"] = ("body", *problem["loc"])
        raise refusal(problems, None if route is None else route.body) from None


def _holds_json(scope: Scope) -> bool:
    headers = scope["headers"]
    return _JSON in headers or any(
        name == b"content-type" and b"json" in value.lower() for name, value in headers
    )


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
