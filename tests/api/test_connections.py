"""What one connection may take: sizes, times and how many there are. Over raw sockets."""

import asyncio
import json
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api.connections import ConnectionLimits
from tests.api.running import Host, eventually, hosting

LIMITS = ConnectionLimits(
    connections=8,
    address_bytes=1000,
    head_bytes=4000,
    headers=20,
    head_s=0.4,
    body_s=0.4,
    body_bytes_per_s=1000,
    unread_s=0.3,
    pipelined=4,
)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class App:
    """Reads a body and says its size; `/large` answers without end."""

    disconnects: int = 0
    aborted: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            size += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while scope["path"] == "/large":
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            if (await _now(receive))["type"] == "http.disconnect":
                self.aborted += 1
                return
        await send({"type": "http.response.body", "body": str(size).encode()})


async def _now(receive: Receive) -> Message:
    try:
        return await asyncio.wait_for(receive(), 0.01)
    except TimeoutError:
        return {"type": "nothing"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosting(LIMITS) as host:
        yield host


@pytest.fixture
def app(host: Host) -> App:
    host.app = app = App()
    return app


def connect(host: Host) -> socket.socket:
    url = urlsplit(host.url)
    return socket.create_connection((url.hostname, url.port), timeout=5)


def sent(host: Host, pieces: Iterable[bytes]) -> bytes:
    """All that comes back until the server closes."""
    with connect(host) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # it was closed; the answer may lie there all the same
        return read(connection)


def read(connection: socket.socket) -> bytes:
    answer = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            return answer
        answer += piece


def error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    found = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return int(head.split()[1]), found["code"]


def slowly(*pieces: bytes) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 21 + b"\r\n"], (431, "headers_too_large")),
        ([b"GET / HTTP/1.1\r\na: " + b"x" * 5000 + b"\r\n\r\n"], (431, "headers_too_large")),
        ([b"GET / HTTP/1.1\r\n", *[b"a: " + b"x" * 999] * 9], (431, "headers_too_large")),
        ([b"\r\n" * 9000], (431, "headers_too_large")),
        ([b"GET /" + b"x" * 2000], (414, "address_too_long")),
        ([b"GET /" + b"%00" * 400 + b" HTTP/1.1\r\n\r\n"], (414, "address_too_long")),
        ([b"\x16\x03\x01" * 9], (400, "invalid_http")),
        ([b"GET /\xff HTTP/1.1\r\n\r\n"], (400, "invalid_http")),
        ([b"GET / HTTP/1.1\r\na: \0\r\n\r\n"], (400, "invalid_http")),
        ([b"GET / HTTP/1.1\r\ncontent-length: " + b"9" * 500], (400, "invalid_http")),
        ([b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n"], (400, "invalid_http")),
        ([CHUNKED + b"fffffffffffffffff\r\n"], (400, "invalid_http")),
        ([CHUNKED + b"1\r\nx\r\n" * 5000], (400, "invalid_http")),
        (slowly(CHUNKED + b"1\r\n1\r\n0\r\na: ", *[b"x" * 5000] * 3), (400, "invalid_http")),
        (slowly(CHUNKED + b"1;", *[b"x" * 5000] * 3), (400, "invalid_http")),
        ([b"GET / HTTP/1.1\r\na:"], (408, "request_too_slow")),
        ([POST + b"x"], (408, "request_too_slow")),
        (slowly(POST, *[b"x"] * 40), (408, "request_too_slow")),
        (slowly(b"GET / HTTP/1.1\r\na: ", *[b"x"] * 40), (408, "request_too_slow")),
    ],
)
def test_what_is_too_large_or_too_slow_is_refused(
    host: Host, app: App, pieces: Iterable[bytes], expected: tuple[int, str]
) -> None:
    assert error(sent(host, pieces)) == expected


def test_a_body_that_comes_steadily_may_take_long(host: Host, app: App) -> None:
    pieces = [b"x" * 100] * 20  # twice as fast as it must be, for twice as long as is free
    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2000\r\n\r\n"
    answer = sent(host, slowly(head, *pieces))
    assert b"2000" in answer.partition(b"\r\n\r\n")[2]


def test_the_application_learns_that_a_slow_client_is_gone(host: Host, app: App) -> None:
    assert error(sent(host, [POST]))[0] == 408
    assert eventually(lambda: app.disconnects == 1)


def test_a_client_that_asks_nothing_is_told_nothing(host: Host, app: App) -> None:
    began = time.monotonic()
    assert sent(host, []) == b""
    assert 0.2 < time.monotonic() - began < 4


def test_a_second_request_on_a_connection_is_bound_too(host: Host, app: App) -> None:
    answer = sent(host, slowly(GET, b"GET / HTTP/1.1\r\na: "))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"408 Request Timeout" in answer


def test_pipelined_requests_are_answered_and_too_many_are_not(host: Host, app: App) -> None:
    few = sent(host, [GET * 3 + GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")])
    assert few.count(b"HTTP/1.1 200") == 4
    many = sent(host, [GET * 1000])
    assert 1 <= many.count(b"HTTP/1.1 200") <= 6
    assert many.endswith(b"0\r\n\r\n"), "the last answer is whole"


def test_an_answer_that_nobody_reads_is_dropped(host: Host, app: App) -> None:
    with connect(host) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        assert eventually(lambda: app.aborted == 1, 10)


def test_the_longest_idle_connection_makes_room(host: Host, app: App) -> None:
    idle = [connect(host) for _ in range(LIMITS.connections)]
    time.sleep(0.1)
    one_more = connect(host)
    one_more.sendall(GET)
    assert one_more.recv(100).startswith(b"HTTP/1.1 200")
    assert read(idle[0]) == b"", "the first one was closed"
    idle[-1].sendall(GET)
    assert idle[-1].recv(100).startswith(b"HTTP/1.1 200")
    for connection in (*idle, one_more):
        connection.close()


def test_busy_connections_are_not_closed_for_others(host: Host, app: App) -> None:
    busy = [connect(host) for _ in range(LIMITS.connections)]
    for connection in busy:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert error(sent(host, [])) == (503, "unavailable")
    for connection in busy:
        connection.close()
    assert eventually(lambda: app.aborted == len(busy), 10)
