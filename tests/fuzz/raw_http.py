"""Bytes over a socket: broken, huge, late and cut-off requests. The server lives.

A case is pieces of Latin-1 text, sent one after the other with pauses, and how the client leaves.
"""

import re
import socket
import struct
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import psutil

from tests.fuzz.target import BOUND_S, Target, wrong_error
from tests.fuzz.trial import Case, Verdict

_CHAT = '{"model": "base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}'
_STREAM = _CHAT[:-1].replace(
    '"max_tokens": 3', '"max_tokens": 200, "ignore_eos": true, "stream": true}'
)


def _post(body: str, *headers: str, path: str = "/v1/chat/completions") -> str:
    lines = [f"POST {path} HTTP/1.1", "host: a", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {len(body)}", *headers, "", body])


_GET = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
_CHUNKED = _post("", "transfer-encoding: chunked").replace("content-length: 0\r\n", "")
_CHUNKS = f"{len(_CHAT):x}\r\n{_CHAT}\r\n0\r\n\r\n"
_UPLOAD = (
    "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    'content-length: 140\r\n\r\n--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n'
    "fine-tune"
)
_GOOD = [
    _GET,
    _post(_CHAT),
    _post(_STREAM),
    _CHUNKED + _CHUNKS,
    _UPLOAD,
    _GET + _post(_CHAT) + _GET,
]
_LINES = [
    *(
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET /health\r\n\r\n",
        "GET /health HTTP/9.9\r\n\r\n",
        "\x00" * 99,
    ),
    *(
        "GET  /health HTTP/1.1\r\n\r\n",
        "get /health HTTP/1.1\r\nhost: a\r\n\r\n",
        "\x16\x03\x01\x02\x00",
    ),
    *(
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n\r\n",
    ),
    *(
        "GET http://b/health HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET //health HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    *("GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n", "GET /%zz%C3 HTTP/1.1\r\nhost: a\r\n\r\n"),
    *(
        "GET /v1/models/%ff%fe HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    *(
        "GET /v1/files?limit=%ff HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /?a=\x01 HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    *(
        "GET /health HTTP/1.1\nhost: a\n\n",
        "GET /health HTTP/1.0\r\n\r\n",
        "GET /health#a HTTP/1.1\r\n\r\n",
    ),
    "GET /docs HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n",
]
_HEADERS = [
    *("content-length: -1", "content-length: 1e3", "content-length: 5, 5", "content-length: 0x5"),
    *(f"content-length: {'9' * 30}", f"content-length: {'9' * 5000}", "content-length: +5"),
    *("transfer-encoding: gzip, chunked", "transfer-encoding: identity", "transfer-encoding: x"),
    *("content-encoding: gzip", "expect: 100-continue", "expect: 200-maybe", "te: trailers"),
    *("authorization: Bearer \xff\xfe", "authorization:", "x-request-id: \xe9\x01", "host: b"),
    *("range: bytes=0-0,5-4", f"range: bytes={'9' * 5000}-", "last-event-id: -1", "bad header: 1"),
    *(": empty", "no colon", " folded: 1", "x: a\r\n folded", "x:\x00", "connection: close, x"),
    *(
        "accept-encoding: *;q=0",
        "content-type: text/plain",
        "content-type: application/json; a=\xff",
    ),
    *("content-type: multipart/form-data", "content-type: multipart/form-data; boundary="),
]
_CHUNK_TAILS = [
    *(
        "ffffffffffffffff\r\n",
        "-1\r\n",
        "zz\r\n",
        "5\r\nab\r\n0\r\n\r\n",
        "0\r\nx: y\r\n\r\n",
        "1;a=b\r\n{\r\n",
    ),
    *("2\r\n{}\r\n0\r\n\r\n0\r\n\r\n", "00000000000000000002\r\n{}\r\n0\r\n\r\n", "2\n{}\n0\n\n"),
]
_MOST_BYTES = 256 * 2**20


class RawHttp:
    """Everything that a client can write, and every way in which it can leave."""

    name = "raw"

    def __init__(self, target: Target, *, big: bool) -> None:
        self._target = target
        self._big = big
        self._files = psutil.Process(target.pid).num_fds()

    def make(self, chance: Random) -> Case:
        kind = chance.choice(
            ["line", "header", "many", "chunks", "cut", "noise", "slow", "pipeline"]
        )
        send: list[Any] = list(self._pieces(kind, chance))
        leave = chance.choice(["wait", "wait", "half", "close", "reset"])
        return {"kind": kind, "send": send, "pause_s": 0.1 if kind == "slow" else 0, "leave": leave}

    def _pieces(self, kind: str, chance: Random) -> Iterator[Any]:
        good = chance.choice(_GOOD)
        head, _, rest = good.partition("\r\n\r\n")
        if kind == "line":
            yield chance.choice(_LINES)
        elif kind == "header":
            more = "\r\n".join(chance.choices(_HEADERS, k=chance.choice([1, 1, 2])))
            yield f"{head}\r\n{more}\r\n\r\n{rest}"
        elif kind == "many":
            times = chance.choice([50, 2000, 60_000] + [20_000_000] * self._big)
            yield from self._many(chance.choice(["line", "name", "value", "count"]), times)
        elif kind == "chunks":
            yield _CHUNKED
            yield chance.choice(_CHUNK_TAILS)
        elif kind == "cut":
            yield good[: chance.randrange(len(good))]
        elif kind == "noise":
            noisy = list(good)
            for _ in range(chance.choice([1, 3, 20])):
                noisy[chance.randrange(len(noisy))] = chr(chance.randrange(256))
            yield "".join(noisy)
        elif kind == "slow":
            size = max(len(good) // 8, 1)
            yield from (good[at : at + size] for at in range(0, len(good), size))
        else:
            yield from chance.choices([*_GOOD[:4], *_LINES], k=chance.choice([2, 5, 40]))

    def _many(self, what: str, times: int) -> Iterator[Any]:
        if what == "line":
            yield "GET /"
            yield {"$text": "a", "$times": times}
            yield " HTTP/1.1\r\nhost: a\r\n\r\n"
            return
        yield "GET /v1/models HTTP/1.1\r\nhost: a\r\n"
        if what == "count":
            yield {"$text": "x: y\r\n", "$times": times}
        elif what == "name":
            yield {"$text": "x", "$times": times}
            yield ": y\r\n"
        else:
            yield "x: "
            yield {"$text": "y", "$times": times}
            yield "\r\n"
        yield "\r\n"

    def judge(self, case: Case) -> Verdict:
        before = self._target.memory
        try:
            outcome, wrong = self._sent(case)
        except TimeoutError:
            outcome, wrong = "late", f"{case['kind']}: neither answer nor end in {BOUND_S:g} s"
        after = self._target.aftermath() or self._left(before)
        return Verdict(outcome, wrong or (after and f"{case['kind']}: {after}"), outcome == "late")

    def _left(self, before: int) -> str | None:
        """What the connection left behind in the server."""
        process = psutil.Process(self._target.pid)
        end = time.monotonic() + BOUND_S
        while process.num_fds() > self._files + 8 and time.monotonic() < end:
            time.sleep(0.05)
        if process.num_fds() > self._files + 8:
            files, self._files = process.num_fds() - self._files, process.num_fds()
            return f"{files} more files are open than before"
        if self._target.memory > before + _MOST_BYTES:
            return f"it took {(self._target.memory - before) >> 20} MiB"
        return None

    def _sent(self, case: Case) -> tuple[str, str | None]:
        with socket.create_connection(self._target.address, timeout=BOUND_S) as link:
            try:
                for piece in case["send"]:
                    text = piece["$text"] * piece["$times"] if isinstance(piece, dict) else piece
                    link.sendall(text.encode("latin-1"))
                    time.sleep(case["pause_s"])
                if case["leave"] == "reset":
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if case["leave"] in ("reset", "close"):
                    return "left", None
                if case["leave"] == "half":
                    link.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it refused to read on; what it answered may be there
            return self._answers(link, open_end=case["leave"] == "wait")

    def _answers(self, link: socket.socket, *, open_end: bool) -> tuple[str, str | None]:
        """All that comes. A client that still waits hears nothing if its request is not whole."""
        received = b""
        link.settimeout(0.3 if open_end else BOUND_S)
        end = time.monotonic() + BOUND_S
        try:
            while time.monotonic() < end and (data := link.recv(2**16)):
                received += data
        except TimeoutError:
            if not open_end:
                raise
        except OSError:
            return "reset", None
        return _read(received, whole=not open_end)


def _read(received: bytes, *, whole: bool) -> tuple[str, str | None]:
    """The statuses that were answered, and what is wrong with the answers."""
    statuses = []
    while received:
        head, found, rest = received.partition(b"\r\n\r\n")
        status_line = re.match(rb"HTTP/1\.1 (\d{3}) ?[^\r\n]*\r\n", head + b"\r\n")
        if not found or status_line is None:
            return "?", f"what came is no HTTP: {received[:200]!r}"
        status = int(status_line[1])
        if status == 100 or status == 101:
            received = rest
            continue
        statuses.append(status)
        if status >= 500 and status not in (501, 505):
            return str(status), f"a {status}: {received[:400]!r}"
        length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        if length is None:
            break  # a stream, or until the end
        body, received = rest[: int(length[1])], rest[int(length[1]) :]
        if len(body) < int(length[1]) and whole:
            return str(status), f"an answer of {length[1]!r} bytes has {len(body)}"
        is_json = b"application/json" in head.lower()
        if status >= 400 and is_json and (wrong := wrong_error(status, body)):
            return str(status), wrong
    return ", ".join(map(str, sorted(set(statuses)))) or "silence", None
