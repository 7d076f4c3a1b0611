"""Chat completions through the OpenAI SDK."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from adapters_store.store import AdapterStore
from server.api.app_services import Services
from server.errors import DeadlineExceeded, InvalidAdapter, QueueFull, Unavailable
from tests.api.fakes import ByteTokenizer
from tests.api.running import Publish, Running, Serve, eventually

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
LONG = [{"role": "user", "content": "long" * 100}]


def test_a_whole_answer(server: Running) -> None:
    answer = server.sdk.chat.completions.create(model="base", messages=HELLO)
    choice = answer.choices[0]
    assert choice.message.content == server.loop.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.model == "base"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(b"user: Hello\n")
    assert answer.usage.completion_tokens == len(server.loop.text.encode()) + 1
    assert answer.usage.total_tokens == (
        answer.usage.prompt_tokens + answer.usage.completion_tokens
    )
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_says_the_same_as_a_whole_answer(server: Running) -> None:
    server.loop.cached_tokens = 5
    chunks = list(
        server.sdk.chat.completions.create(
            model="base", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    for index in range(2):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == server.loop.text
        assert [c.finish_reason for c in mine if c.finish_reason] == ["stop"]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2 * (len(server.loop.text.encode()) + 1)
    assert chunks[-1].usage.prompt_tokens_details is not None
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_is_events_that_end_with_done(server: Running) -> None:
    body = {"model": "base", "messages": HELLO, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert '"usage"' not in lines[0]


def test_no_chunk_splits_a_character(server: Running) -> None:
    server.loop.text, server.loop.pause_s = "é😀é", 0.02
    chunks = server.sdk.chat.completions.create(model="base", messages=HELLO, stream=True)
    pieces = [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content]
    assert pieces == ["é", "😀", "é"]


def test_every_sampling_field_reaches_the_engine(server: Running) -> None:
    server.sdk.chat.completions.create(
        model="base",
        messages=HELLO,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"65": -5},
        seed=-3,
        stop=["a", "b"],
        n=3,
        extra_body={
            "top_k": 7,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "stop_token_ids": [1, 2],
            "min_tokens": 3,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        },
    )
    asked = server.loop.asked[0]
    assert asked.n == 3
    assert asked.timeout_s == server.services.request_timeout_s
    params = asked.params
    assert (params.max_tokens, params.temperature, params.top_p) == (9, 0.5, 0.9)
    assert (params.top_k, params.min_p, params.repetition_penalty) == (7, 0.05, 1.1)
    assert (params.presence_penalty, params.frequency_penalty) == (0.1, 0.2)
    assert (params.logit_bias, params.seed) == (((65, -5.0),), -3)
    assert (params.stop, params.stop_token_ids) == (("a", "b"), frozenset({1, 2}))
    assert (params.min_tokens, params.include_stop) == (3, True)
    assert (params.ignore_eos, params.skip_special_tokens) == (True, False)
    assert params.top_logprobs is None


def test_without_a_limit_the_answer_may_fill_the_context(server: Running) -> None:
    server.sdk.chat.completions.create(model="base", messages=HELLO)
    prompt = len(server.loop.asked[0].prompt)
    assert server.loop.asked[0].params.max_tokens == server.loop.max_context - prompt


def test_logprobs(server: Running) -> None:
    answer = server.sdk.chat.completions.create(
        model="base", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=2
    )
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.content is not None
    assert [entry.bytes for entry in scores.content] == [[b] for b in server.loop.text.encode()[:2]]
    assert scores.content[0].token == "H"
    assert scores.content[0].logprob == -0.5
    assert [top.token for top in scores.content[0].top_logprobs] == ["x", "H"]
    chunks = server.sdk.chat.completions.create(
        model="base", messages=HELLO, logprobs=True, max_tokens=2, stream=True
    )
    streamed = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert sum(len(s.content or []) for s in streamed) == 2


def test_an_adapter_answers_under_its_version(server: Running, publish: Publish) -> None:
    publish("pirate")
    second = publish("pirate")
    latest = server.sdk.chat.completions.create(model="pirate", messages=HELLO)
    first = server.sdk.chat.completions.create(model="pirate@1", messages=HELLO)
    assert (latest.model, first.model) == ("pirate@2", "pirate@1")
    assert server.loop.asked[0].adapter == second
    assert server.loop.asked[1].adapter != second


@pytest.mark.parametrize(
    "model",
    ["nobody", "pirate@9", "pirate@x", "pirate@", "../pirate", "", "@1", "pirate@" + "9" * 5000],
)
def test_an_unknown_model_is_never_answered(server: Running, publish: Publish, model: str) -> None:
    publish("pirate")
    with pytest.raises(openai.NotFoundError) as caught:
        server.sdk.chat.completions.create(model=model, messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert server.loop.asked == []


def test_somebody_elses_adapter_is_unknown(server: Running, publish: Publish) -> None:
    publish("secret", owner="somebody-else")
    with pytest.raises(openai.NotFoundError):
        server.sdk.chat.completions.create(model="secret", messages=HELLO)


def test_messages_may_be_parts_and_answers_may_come_back(server: Running) -> None:
    first = server.sdk.chat.completions.create(model="base", messages=HELLO)
    body = {
        "model": "base",
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "name": "Ann",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            first.choices[0].message.model_dump(),
        ],
    }
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    said = bytes(server.loop.asked[1].prompt).decode()
    assert said == f"system: Be kind.\nuser: ab\nassistant: {server.loop.text}\n"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "invalid_value",
        ),
        ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "beyond"}]}, "messages", "invalid_value"),
        ({"model": None}, "model", "invalid_value"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": -1}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 1000}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
        ({"stop": ["a", ""]}, "stop", "invalid_value"),
        ({"stop": 7}, "stop", "invalid_value"),
        ({"stop": ["a", "b" * 1025]}, "stop", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"messages": LONG}, "messages", "context_length_exceeded"),
        ({"messages": LONG, "max_tokens": 1}, "messages", "context_length_exceeded"),
    ],
)
def test_a_bad_field_is_named(
    server: Running, fields: dict[str, object], param: str, code: str
) -> None:
    body = {"model": "base", "messages": HELLO} | fields
    response = server.http.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
    assert error["type"] == "invalid_request_error"
    assert server.loop.asked == []


def test_what_closes_a_turn_ends_the_answers_of_chats_alone(
    serve: Serve, services: Services
) -> None:
    server = serve(base=replace(services.base, turn_ends=frozenset({7})))
    server.sdk.chat.completions.create(model="base", messages=HELLO)
    server.sdk.completions.create(model="base", prompt="Hello")
    assert [asked.turn_ends for asked in server.loop.asked] == [{7}, frozenset()]


def test_a_missing_field_is_named(server: Running) -> None:
    error = server.http.post("/v1/chat/completions", json={"model": "base"}).json()["error"]
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")


def test_fields_that_ask_for_nothing_are_accepted(server: Running) -> None:
    body = {
        "model": "base",
        "messages": HELLO,
        "user": "ann",
        "metadata": {"a": "b"},
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "store": False,
        "service_tier": "auto",
        "temperature": None,
        "stop": None,
        "stream": None,
    }
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_full_queue_says_when_to_come_back(server: Running) -> None:
    server.loop.refusal = QueueFull("512 answers wait", retry_after_s=2.4)
    with pytest.raises(openai.RateLimitError) as caught:
        server.sdk.chat.completions.create(model="base", messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.code == "queue_full"
    counted = 'admission_rejections_total{model_name="base",reason="queue_full"} 1.0'
    assert counted in server.http.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (InvalidAdapter("the adapter is of another base"), 400, "invalid_adapter"),
        (Unavailable("the engine failed"), 503, "unavailable"),
        (DeadlineExceeded("too late"), 504, "deadline_exceeded"),
    ],
)
def test_what_fails_before_the_first_token_has_a_status(
    server: Running, failure: Exception, status: int, code: str, stream: bool
) -> None:
    server.loop.failure = failure
    with pytest.raises(openai.APIStatusError) as caught:
        server.sdk.chat.completions.create(model="base", messages=HELLO, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (status, code)


def test_what_fails_later_is_an_event_of_the_stream(server: Running) -> None:
    server.loop.failure = Unavailable("the engine failed on this batch")
    server.loop.failure_after = 2
    server.loop.pause_s = 0.05
    seen = []
    with pytest.raises(openai.APIError, match="the engine failed on this batch") as caught:
        for chunk in server.sdk.chat.completions.create(model="base", messages=HELLO, stream=True):
            seen.append(chunk)
    assert seen
    assert caught.value.code == "unavailable"


def test_an_unexpected_failure_tells_no_internals(server: Running) -> None:
    server.loop.refusal = ZeroDivisionError("secret path /etc/passwd")
    with pytest.raises(openai.InternalServerError) as caught:
        server.sdk.chat.completions.create(model="base", messages=HELLO)
    assert caught.value.code == "internal_error"
    assert "secret" not in caught.value.response.text
    assert caught.value.response.headers["x-request-id"].startswith("req_")


def test_a_client_that_goes_away_cancels(server: Running) -> None:
    server.loop.text = "x" * 200
    server.loop.pause_s = 0.02
    with pytest.raises(httpx.ReadTimeout):
        server.http.post(
            "/v1/chat/completions", json={"model": "base", "messages": HELLO}, timeout=0.3
        )
    assert eventually(lambda: server.loop.handles[0].cancelled.is_set())


def test_a_client_that_leaves_a_stream_cancels(server: Running) -> None:
    server.loop.text = "x" * 200
    server.loop.pause_s = 0.02
    with server.sdk.chat.completions.create(model="base", messages=HELLO, stream=True) as stream:
        next(stream)
    assert eventually(lambda: server.loop.handles[0].cancelled.is_set())


def test_a_client_that_goes_away_before_the_first_token_cancels(server: Running) -> None:
    server.loop.hold = threading.Event()
    body = {"model": "base", "messages": HELLO, "stream": True}
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/chat/completions", json=body, timeout=0.2)
    assert eventually(lambda: server.loop.handles[0].cancelled.is_set())
    server.loop.hold.set()


def test_a_finished_request_is_not_cancelled(server: Running) -> None:
    list(server.sdk.chat.completions.create(model="base", messages=HELLO, stream=True))
    server.sdk.chat.completions.create(model="base", messages=HELLO)
    assert not any(handle.cancelled.is_set() for handle in server.loop.handles)


def test_many_streams_at_once(server: Running) -> None:
    server.loop.text = "word " * 20
    texts: list[str] = []

    def ask() -> None:
        chunks = server.sdk.chat.completions.create(model="base", messages=HELLO, stream=True)
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert texts == [server.loop.text] * 24


def test_slow_tokenising_stops_nobody_else(serve: Serve) -> None:
    begun, go = threading.Event(), threading.Event()

    class SlowTokenizer(ByteTokenizer):
        def chat(
            self, messages: Sequence[Mapping[str, object]], *further: Any, **settings: Any
        ) -> list[int]:
            begun.set()
            assert go.wait(60)
            return super().chat(messages, *further, **settings)

    server = serve(tokenizer=SlowTokenizer())
    asking = threading.Thread(
        target=lambda: server.sdk.chat.completions.create(model="base", messages=HELLO)
    )
    asking.start()
    assert begun.wait(10)
    try:
        assert server.http.get("/health").status_code == 200
    finally:
        go.set()
        asking.join()


def test_an_adapter_is_asked_as_it_was_trained(
    serve: Serve, store: AdapterStore, publish: Publish
) -> None:
    class Prompted(ByteTokenizer):
        def without_default_prompt(self) -> ByteTokenizer:
            return bare

        def chat(
            self, messages: Sequence[Mapping[str, object]], *further: Any, **settings: Any
        ) -> list[int]:
            return [*b"system: Help.\n", *super().chat(messages, *further, **settings)]

    bare = ByteTokenizer()
    with_prompt = publish("older")
    manifest, tensors, _ = store.load(with_prompt)
    store.publish(with_prompt.owner, "newer", replace(manifest, default_prompt=False), tensors)
    server = serve(tokenizer=Prompted())
    lengths = {}
    for model in ("base", "older", "newer"):
        answer = server.sdk.chat.completions.create(model=model, messages=HELLO)
        assert answer.usage is not None
        lengths[model] = answer.usage.prompt_tokens
    plain, more = len(b"user: Hello\n"), len(b"system: Help.\n")
    assert lengths == {"base": plain + more, "older": plain + more, "newer": plain}
