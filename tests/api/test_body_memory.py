"""Bodies share memory: whoever holds much of it keeps nobody from a short question."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api import gate
from server.app import describe

KIB = 1024


async def _reads(_: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _status(app: gate.BodyLimit, pieces: "asyncio.Queue[Message]") -> int:
    told: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            told.append(message["status"])

    await app({"type": "http", "path": "/v1/x", "headers": []}, pieces.get, send)
    return told[0]


def _piece(kib: int, *, last: bool) -> Message:
    return {"type": "http.request", "body": b"x" * kib * KIB, "more_body": not last}


def _sent(kib: int) -> "asyncio.Queue[Message]":
    pieces = asyncio.Queue[Message]()
    pieces.put_nowait(_piece(kib, last=True))
    return pieces


@asynccontextmanager
async def _held(app: gate.BodyLimit, kib: int) -> AsyncIterator[None]:
    """A request whose body does not end, until it does."""
    pieces = asyncio.Queue[Message]()
    pieces.put_nowait(_piece(kib, last=False))
    task = asyncio.create_task(_status(app, pieces))
    await asyncio.sleep(0.01)
    yield
    pieces.put_nowait(_piece(0, last=True))
    assert await task == 200


def test_large_bodies_wait_for_room_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_ALL_BODIES", 1024 * KIB)
    app = gate.BodyLimit(_reads, describe, body_bytes=512 * KIB, file_bytes=KIB)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(_held(app, 500))
            assert await _status(app, _sent(100)) == 503
            assert await _status(app, _sent(64)) == 200
        assert await _status(app, _sent(100)) == 200  # there is room again

    asyncio.run(run())
