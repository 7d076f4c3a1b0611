"""Answers share a connection, and the fault or the flood of one leaves the others alone."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from server.app import describe
from server.console.mixed_answers import MixedAnswers

ASKING = {
    "type": "http",
    "scheme": "https",
    "client": ("10.0.0.1", 1),
    "headers": [(b"authorization", b"Bearer k"), (b"cookie", b"c=1"), (b"content-length", b"9")],
}


def mixed(api: ASGIApp, *bodies: bytes) -> MixedAnswers:
    return MixedAnswers(api, ASKING, "/v1/chat/completions", bodies, describe)


async def all_of(answers: MixedAnswers) -> list[dict[str, Any]]:
    text = b"".join([it async for it in answers.events()]).decode()
    assert text.endswith("\n\n")
    return [json.loads(it.removeprefix("data: ")) for it in text.removesuffix("\n\n").split("\n\n")]


def answering(answer: Callable[[bytes, Send], Awaitable[None]]) -> ASGIApp:
    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await answer((await receive())["body"], send)

    return api


def test_each_is_a_request_with_the_browsers_key_and_nothing_else_of_it() -> None:
    scopes: list[Scope] = []

    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        body = (await receive())["body"]
        await send({"type": "http.response.body", "body": b'{"said":%s}' % body})

    async def run() -> list[dict[str, Any]]:
        return await all_of(mixed(api, b"1", b"2"))

    events = asyncio.run(run())
    assert {it["column"]: it["chunk"] for it in events if "chunk" in it} == {
        0: {"said": 1},
        1: {"said": 2},
    }
    for scope in scopes:
        assert (scope["method"], scope["path"]) == ("POST", "/v1/chat/completions")
        assert scope["client"] == ASKING["client"]
        assert dict(scope["headers"]) == {
            b"authorization": b"Bearer k",
            b"content-type": b"application/json",
            b"content-length": b"1",
        }


def test_events_are_whole_whatever_their_text() -> None:
    texts = ["data: x", "event: error\ndata: y", "a\n\nb", '{"', "[DONE]"]

    async def answer(body: bytes, send: Send) -> None:
        events = "".join(f"data: {json.dumps({'t': it})}\n\n" for it in texts)
        events += f"event: error\ndata: {json.dumps({'error': 1})}\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": events.encode(), "more_body": False})

    async def run() -> list[dict[str, Any]]:
        return await all_of(mixed(answering(answer), b"{}"))

    *chunks, end = [it.get("chunk") for it in asyncio.run(run())]
    assert chunks == [*({"t": it} for it in texts), {"error": 1}]
    assert end is None


def test_one_that_breaks_off_tells_it_and_the_others_go_on() -> None:
    async def answer(body: bytes, send: Send) -> None:
        if body == b"bad":
            raise RuntimeError("kaput")
        await send({"type": "http.response.body", "body": b'data: {"a":1}\n\n'})

    async def run() -> list[dict[str, Any]]:
        return await all_of(mixed(answering(answer), b"bad", b"good"))

    events = asyncio.run(run())
    told = {it["column"]: it["chunk"] for it in events if "chunk" in it}
    assert told[1] == {"a": 1}
    assert told[0]["error"]["code"] == "internal_error"
    assert [it["column"] for it in events if it.get("done")] == [0, 1]


@pytest.mark.parametrize("reads_on", [True, False])
def test_a_browser_that_does_not_read_holds_its_answers_up(reads_on: bool) -> None:
    sent, piece = 0, b'data: {"text":"%s"}\n\n' % (b"x" * 1000)

    async def answer(body: bytes, send: Send) -> None:
        nonlocal sent
        for _ in range(2000):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += 1

    async def run() -> int:
        answers = mixed(answering(answer), b"{}")
        for _ in range(20):
            await asyncio.sleep(0)
        held = sent
        if reads_on:
            assert len(await all_of(answers)) == 2001
        answers.close()
        for _ in range(2005):
            await asyncio.sleep(0)
        return held

    assert 100 < asyncio.run(run()) < 400
    assert sent == 2000  # it ends either way


def test_leaving_is_as_a_closed_connection_to_each() -> None:
    left: list[str] = []

    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        left.append((await receive())["type"])

    async def run() -> None:
        answers = mixed(api, b"{}", b"{}")
        await asyncio.sleep(0)
        assert left == []
        answers.close()
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert left == ["http.disconnect"] * 2
