"""Bounds what one HTTP connection may take, before anything of a request is looked at.

uvicorn's protocol bounds neither the size of a request's head, nor the time in which a head or a
body must come, nor the time that an answer may lie unread. Knows no endpoint.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from server.api.error_body import ErrorBody
from server.errors import (
    AddressTooLong,
    HeadTooLarge,
    InvalidHttp,
    RequestTooSlow,
    Unavailable,
    VerandahError,
)

# Each piece of a body costs a microsecond, be it of one byte.
_FREE_PIECES = 4096
_PIECE_BYTES = 64

Describe = Callable[[Exception], ErrorBody]


@dataclass(frozen=True)
class ConnectionLimits:
    """Sizes in bytes, times in seconds.

    A body may take `body_s`, and a second more for each `body_bytes_per_s` that came. An answer may
    lie `unread_s` without one byte of it being read. `pipelined` counts the requests that wait for
    the one before them on the same connection.
    """

    connections: int = 1024
    address_bytes: int = 48 * 1024
    head_bytes: int = 64 * 1024
    headers: int = 128
    head_s: float = 20.0
    body_s: float = 30.0
    body_bytes_per_s: int = 4096
    unread_s: float = 60.0
    pipelined: int = 16


@dataclass(frozen=True)
class Doorkeeper:
    """What all connections of one server share.

    `listened_to` are those from which the rest of a request, or the next one, is awaited; the
    longest first. If there are too many connections, these have to go.
    """

    limits: ConnectionLimits
    describe: Describe
    listened_to: "dict[Connection, None]" = field(default_factory=dict)


def http_protocol(describe: Describe, limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """The `http` of a `uvicorn.Config`: makes the connections of one server."""
    factory = partial(Connection, Doorkeeper(limits, describe))
    return cast(type[asyncio.Protocol], factory)  # uvicorn only calls it


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds; what exceeds one is answered with an error, and closed."""

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = doorkeeper.limits
        self._describe = doorkeeper.describe
        self._listened_to = doorkeeper.listened_to
        self._in_head = True
        self._head_bytes = 0  # as they came, of the pieces that lie in the head alone
        self._header_bytes = 0
        self._body_bytes = self._framed_bytes = 0  # without and with what stands between chunks
        self._pieces = 0
        self._refusal: VerandahError | None = None  # of what the parser is just reading
        self._closing = False
        self._lost = False
        self._running: RequestResponseCycle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._make_room()
        self._listened_to[self] = None
        self._late = self.loop.call_later(self._limits.head_s, self._check_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._running is not None:  # uvicorn tells the last request alone, not the one before it
            self._running.disconnected = True
            self._running.message_event.set()
        self._listened_to.pop(self, None)
        self._stop_waiting()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._framed_bytes += len(data)
        super().data_received(data)
        if self._closing or self.transport.is_closing():
            return
        if self._in_head:
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(self._head_too_large())
            elif self._head_bytes and self._late is None:
                self._late = self.loop.call_later(self._limits.head_s, self._check_head)
        elif self._framed_bytes > self._limits.head_bytes + 16 * self._body_bytes:
            self._refuse(InvalidHttp("the body has more framing than content: send larger chunks"))
        elif self._late is None:
            self._expect_body(0.0)

    # What the parser finds. An exception in one of these ends the parsing.

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self._limits.pipelined:
            self._refusal = InvalidHttp("too many requests at once: wait for the answers")
            raise self._refusal
        self._header_bytes = 0
        self._listened_to.setdefault(self)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > self._limits.address_bytes:
            most = self._limits.address_bytes
            self._refusal = AddressTooLong(
                f"the path and query are over {most} bytes: send a shorter address"
            )
            raise self._refusal
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        many = len(self.headers) >= self._limits.headers
        if many or self._header_bytes > self._limits.head_bytes:
            self._refusal = self._head_too_large()
            raise self._refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_bytes = self._body_bytes = self._framed_bytes = self._pieces = 0
        self._stop_waiting()
        super().on_headers_complete()
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._pieces += 1
        if self._pieces > _FREE_PIECES + self._body_bytes // _PIECE_BYTES:
            self._refusal = InvalidHttp("the body comes in too small pieces: send larger ones")
            raise self._refusal
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._stop_waiting()
        self._listened_to.pop(self, None)
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._lost:  # the client went with requests in line, which nobody waits for
            return
        if not self.pipeline:
            self._listened_to.setdefault(self)
        super().on_response_complete()

    # What takes too long.

    def _check_head(self) -> None:
        self._late = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # an answer is on its way: the keep-alive time follows it
        if not self._head_bytes:
            self.transport.close()  # nothing was asked, so nothing is answered
            return
        self._refuse(
            RequestTooSlow(
                f"the request's headers took over {self._limits.head_s:g} s: send them at once"
            )
        )

    def _expect_body(self, waited_s: float) -> None:
        """Look again after a while; `waited_s` is how long the client has been waited for."""
        self._late = self.loop.call_later(
            self._limits.body_s / 4, self._check_body, waited_s, self._body_bytes
        )

    def _check_body(self, waited_s: float, body_bytes: int) -> None:
        self._late = None
        if not self.flow.read_paused:  # else it is we who do not read
            waited_s += self._limits.body_s / 4
        per_s = self._limits.body_bytes_per_s
        earned_s = 0.0 if self.cycle.response_complete else self._body_bytes / per_s
        if waited_s >= self._limits.body_s + earned_s:
            self._refuse(
                RequestTooSlow(
                    f"{self._body_bytes} bytes of the body came in {waited_s:g} s: send at least "
                    f"{per_s} bytes a second"
                )
            )
        else:
            self._expect_body(waited_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _expect_reading(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self._limits.unread_s, self._check_reading, waiting)

    def _check_reading(self, waiting: int) -> None:
        if self.transport.get_write_buffer_size() >= waiting:
            self.transport.abort()  # what was not read is dropped
        else:
            self._expect_reading()

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    # Refusals.

    def _make_room(self) -> None:
        oldest = next(iter(self._listened_to), None)
        if oldest is not None:
            del self._listened_to[oldest]
            oldest.transport.abort()
            return
        most = self._limits.connections
        self._refuse(
            Unavailable(f"{most} connections are open, which is the most: try again in a moment")
        )

    def _head_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"the request's headers are over {self._limits.head_bytes} bytes, or more than "
            f"{self._limits.headers}: send fewer"
        )

    def send_400_response(self, msg: str) -> None:
        """Called for what is not HTTP, and for what one of the methods above refused."""
        malformed = InvalidHttp("this is not a valid HTTP request: look at its first lines")
        self._refuse(self._refusal or malformed)

    def _refuse(self, error: VerandahError) -> None:
        """Answer with an error and read no more; answers that are on their way come first."""
        self._closing = True
        self._stop_waiting()
        cycle = self.cycle
        busy = cycle is not None and not cycle.response_complete
        if self._in_head and busy:
            cycle.keep_alive = False  # of the last whole request: the connection ends behind it
            return
        if not self._in_head and (cycle.response_started or self.pipeline):
            self.transport.abort()
            return
        answer = self._describe(error).response()
        lines = [b"%s: %s\r\n" % header for header in answer.raw_headers]
        status = STATUS_LINE[answer.status_code]
        head = b"".join([status, *lines, b"connection: close\r\n\r\n"])
        self.transport.write(head + bytes(answer.body))
        if busy:
            cycle.disconnected = True
            cycle.message_event.set()
        # A client that is still sending would see a reset connection, not the answer: the rest is
        # read and dropped for a while.
        self.transport.write_eof()
        self._listened_to.setdefault(self)
        self._late = self.loop.call_later(self._limits.head_s / 10, self.transport.abort)
