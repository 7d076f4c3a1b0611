"""The short way answers as FastAPI does. A `content-type` with a charset takes FastAPI's way."""

import asyncio
import json
import re
from collections.abc import Iterator

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api.completions.delivery import StreamWaker
from server.api.completions.fast_path import FastPath, FastRoute
from server.api.completions.text_completion import CompletionRequest, answer
from server.tenancy.principal import SERVER_ADMIN
from tests.api.running import Running

HELLO = [{"role": "user", "content": "Hello"}]
ASK: dict[str, object] = {"model": "base", "prompt": [72, 105], "max_tokens": 2}
CHAT: dict[str, object] = {"model": "base", "messages": HELLO, "max_tokens": 2}

CHANGES: list[dict[str, object]] = [
    {},
    {"n": 2},
    {"stream": True},
    {"stream": True, "n": 2, "stream_options": {"include_usage": True}},
    {"stop": "!", "seed": 3, "user": "me"},
    {"model": "nobody"},
    {"model": 3},
    {"max_tokens": 5000},
    {"temperature": 7},
    {"temperature": "hot"},
    {"unheard_of": 1},
    {"tools": [{}]},
    {"n": 999},
]
BODIES = [json.dumps(body | changes) for changes in CHANGES for body in (ASK, CHAT)]
BODIES += [json.dumps(ASK | {"prompt": prompt}) for prompt in ("Hi", [], ["a", [3]], [1000], None)]
BODIES += [json.dumps(ASK | {"logprobs": 1, "echo": True})]
BODIES += ["", "{", "[]", "3", '{"model": "base"}', "[" * 9000, '{"model": "\\ud800"}']


def asked(server: Running, body: str, kind: str) -> tuple[int, str, str]:
    """Status, type and text of an answer, without its name and time."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    answered = server.http.post(path, content=body, headers={"content-type": kind})
    text = re.sub(r'("id":"\w+-)\w+|("created":)\d+', r"\1\2", answered.text)
    return answered.status_code, answered.headers["content-type"], text


@pytest.mark.parametrize("body", BODIES)
def test_both_ways_answer_the_same(server: Running, body: str) -> None:
    fast_path = asked(server, body, "application/json")
    assert fast_path == asked(server, body, "application/json; charset=utf-8")


def test_a_good_request_does_not_reach_fastapi(server: Running) -> None:
    async def fastapi(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it was reached")

    sent: list[Message] = []
    given: Iterator[Message] = iter(
        [
            {"type": "http.request", "body": b'{"model": "base", ', "more_body": True},
            {"type": "http.request", "body": b'"prompt": [72], "max_tokens": 1}'},
        ]
    )

    async def receive() -> Message:
        message = next(given, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    async def send(message: Message) -> None:
        sent.append(message)

    routes = {"/v1/completions": FastRoute(CompletionRequest, answer)}
    fast_path = FastPath(fastapi, server.services, StreamWaker(), routes)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"content-type", b"application/json")],
        "verandah.principal": SERVER_ADMIN,
    }
    asyncio.run(fast_path(scope, receive, send))
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"])["choices"][0]["text"] == "H"
