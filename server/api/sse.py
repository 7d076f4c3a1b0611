"""Server-sent events: their framing, and responses that stream them. Knows no endpoint."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Final

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

STALLED_S: Final = 60.0
DONE = b"data: [DONE]\n\n"

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def event(data: Mapping[str, object], name: str | None = None, id: str | None = None) -> bytes:
    """One event. `name` and `id` are left out unless set, as in OpenAI's streams."""
    head = (f"id: {id}\n" if id else "") + (f"event: {name}\n" if name else "")
    return f"{head}data: {_encode(data)}\n\n".encode()


_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_RAW_HEADERS = (
    *((name.encode(), value.encode()) for name, value in _HEADERS.items()),
    (b"content-type", b"text/event-stream; charset=utf-8"),
)


class AnswerStream(Response):
    """Streams events whose source ends when the client disconnects. Starlette's own response
    watches for that in tasks, which take a quarter of a request's time.

    Args:
        events: bytes, each with whether more will come. The last are written together with the end
            of the response, because a write costs more than making the bytes.
        on_end: as in EventStream.
    """

    def __init__(
        self, events: AsyncIterator[tuple[bytes, bool]], on_end: Callable[[], None]
    ) -> None:
        # Response.__init__ is not called: it would make headers for a body, and there is none.
        self._events = events
        self._on_end = on_end
        self.status_code = 200
        self.raw_headers = list(_RAW_HEADERS)
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            async for events, more in self._events:
                await send({"type": "http.response.body", "body": events, "more_body": more})
        finally:
            self._on_end()


def in_time(send: Send) -> Send:
    """`send` that raises ClientStalled for a client that does not read: it holds what is sent."""

    async def send_in_time(message: Message) -> None:
        try:
            async with asyncio.timeout(STALLED_S):
                await send(message)
        except TimeoutError:
            raise ClientStalled from None

    return send_in_time


class ClientStalled(Exception):
    """A client has read nothing of a stream for too long."""


class EventStream(StreamingResponse):
    """Streams events, to a client that reads them. `on_end` runs however the stream ends: a client
    may disconnect before the first event, and a generator that never started never reaches its
    `finally`.
    """

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, headers=_HEADERS, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientStalled):  # the server closes the connection
                await super().__call__(scope, receive, in_time(send))
        finally:
            self._on_end()
