"""Calls an application without a socket, with targets that no HTTP client would send."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class Answer:
    """A whole answer. `head` has its headers as lines, without those that differ each time."""

    status: int
    head: bytes
    content: bytes

    def json(self) -> Any:
        return httpx.Response(self.status, content=self.content).json()


class Caller:
    """Sends one request after another, all from one event loop, as a server's are answered."""

    def __init__(self, app: ASGIApp, portal: BlockingPortal) -> None:
        self._app = app
        self._portal = portal

    def __call__(
        self,
        method: str,
        target: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> Answer:
        """`target` goes out as it is; `body` is as httpx takes it."""
        request = httpx.Request(method, "http://x/", headers=headers, **body)
        sent = [(name.lower(), value) for name, value in request.headers.raw]
        if key is not None:
            sent.append((b"authorization", f"Bearer {key}".encode()))
        return self._portal.call(self._ask, method, target, sent, request.read())

    async def _ask(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], content: bytes
    ) -> Answer:
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),  # as uvicorn does
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        unread = [{"type": "http.request", "body": content, "more_body": False}]
        answered: list[Message] = []

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await asyncio.Event().wait()  # the client stays
            raise AssertionError

        async def send(message: Message) -> None:
            answered.append(message)

        await asyncio.wait_for(self._app(scope, receive, send), 30)
        start, *parts = answered
        named = [it for it in start["headers"] if it[0] not in (b"x-request-id", b"date")]
        head = b"\n".join(name + b": " + value for name, value in named)
        return Answer(start["status"], head, b"".join(part.get("body", b"") for part in parts))


@contextmanager
def calling(app: ASGIApp) -> Iterator[Caller]:
    with start_blocking_portal() as portal:  # a run for each would start threads for each
        yield Caller(app, portal)
