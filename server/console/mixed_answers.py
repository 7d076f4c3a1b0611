"""Asks the API several things at once, and mixes its answers into one stream. Knows no model.

Browsers hold six connections to a server, so nine answers cannot have one each. Here each is a
request of its own to the whole application, key, limits, usage and log included; only the
connection is shared.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Scope

from server.api.error_body import ErrorBody

_MOST_UNSENT: Final = 256 * 1024  # bytes; a browser that does not read stops its answers
_KEPT: Final = ("type", "asgi", "http_version", "scheme", "client", "server")
_KEPT_HEADERS: Final = (b"authorization", b"host")

Describe = Callable[[Exception], ErrorBody]


class MixedAnswers:
    """The answers to several POST requests, each event with the number of its column.

    Its maker must `close` it, which ends what still runs.

    Args:
        api: the whole application.
        asking: the browser's own request, whose key the others have.
        bodies: in JSON, one for each answer.
    """

    def __init__(
        self, api: ASGIApp, asking: Scope, path: str, bodies: Sequence[bytes], describe: Describe
    ) -> None:
        self._api = api
        self._asking = asking
        self._path = path
        self._describe = describe
        self._unsent = bytearray()
        self._news, self._room, self._gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._tasks = [asyncio.create_task(self._ask(*each)) for each in enumerate(bodies)]
        self._open = len(bodies)

    async def events(self) -> AsyncIterator[bytes]:
        """`{"column", "chunk"}` for each event of an answer, and `{"column", "done"}` at its end. A
        chunk is what the API sends, errors too."""
        while self._open or self._unsent:
            await self._news.wait()
            self._news.clear()
            events = bytes(self._unsent)
            self._unsent.clear()
            self._room.set()
            yield events

    def close(self) -> None:
        """Nobody reads any more: every answer learns it as of a closed connection."""
        self._gone.set()
        self._room.set()

    async def _ask(self, column: int, body: bytes) -> None:
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            for chunk in _chunks(message.get("body", b"")):
                await self._room.wait()
                self._add(b'{"column":%d,"chunk":%s}' % (column, chunk))

        try:
            await self._api(self._request(body), receive, send)
        except Exception as error:  # the application has logged it
            failure = json.dumps(self._describe(error).body()).encode()
            self._add(b'{"column":%d,"chunk":%s}' % (column, failure))
        finally:
            self._open -= 1
            self._add(b'{"column":%d,"done":true}' % column)

    def _request(self, body: bytes) -> Scope:
        headers = [it for it in self._asking["headers"] if it[0] in _KEPT_HEADERS]
        headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", b"%d" % len(body)))
        return {
            **{name: self._asking[name] for name in _KEPT if name in self._asking},
            "method": "POST",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
        }

    def _add(self, event: bytes) -> None:
        if self._gone.is_set():
            return
        self._unsent += b"data: %s\n\n" % event
        if len(self._unsent) > _MOST_UNSENT:
            self._room.clear()
        self._news.set()


def _chunks(body: bytes) -> list[bytes]:
    """The JSON of a document, or of each whole event; a stream's last event has none."""
    events = body.split(b"\n\n") if body.startswith((b"data: ", b"event: ")) else [body]
    data = [it.removeprefix(b"event: error\n").removeprefix(b"data: ") for it in events]
    return [it for it in data if it.startswith(b"{")]
