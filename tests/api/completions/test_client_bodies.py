"""The request bodies that well-known clients send without being told to."""

import json
from typing import Any

import pytest

from tests.api.running import Running, Serve

ASK = [{"role": "user", "content": "hi"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "guidellm": (
        CHAT,
        {
            "messages": PARTS,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_tokens": 64,
            "max_completion_tokens": 64,
            "stop": None,
            "ignore_eos": True,
        },
    ),
    "guidellm-text": (
        TEXT,
        {
            "prompt": "hi",
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_tokens": 64,
            "stop": None,
            "ignore_eos": True,
        },
    ),
    "open-webui": (
        CHAT,
        {
            "messages": [*ASK, {"role": "assistant", "content": "yes"}, *ASK],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 1000,
        },
    ),
    "promptfoo": (
        CHAT,
        {
            "messages": ASK,
            "max_tokens": 1024,
            "temperature": 0,
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
        },
    ),
    "langchain": (
        CHAT,
        {
            "messages": [{"content": "hi", "role": "user", "name": None}],
            "stream": False,
            "temperature": 0.7,
            "n": 1,
            "logprobs": False,
            "top_logprobs": None,
            "tools": [],
            "parallel_tool_calls": False,
        },
    ),
    "langchain-llm": (
        TEXT,
        {
            "prompt": ["hi"],
            "max_tokens": 256,
            "temperature": 0.7,
            "top_p": 1,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "n": 1,
            "best_of": 1,
            "logit_bias": {},
            "logprobs": None,
            "seed": None,
        },
    ),
    "llama-index": (CHAT, {"messages": ASK, "max_tokens": 256, "temperature": 0.1, "stream": True}),
    "litellm": (
        CHAT,
        {
            "messages": [
                *ASK,
                {
                    "role": "assistant",
                    "content": "yes",
                    "tool_calls": None,
                    "function_call": None,
                    "provider_specific_fields": {},
                    "reasoning_content": None,
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
                    ],
                },
            ],
            "user": "",
            "metadata": {"trace": "1"},
            "drop": None,
        },
    ),
    "continue": (
        CHAT,
        {
            "messages": ASK,
            "max_tokens": 4096,
            "temperature": 0.5,
            "stream": True,
            "stop": [],
            "stream_options": {"include_usage": True},
        },
    ),
    "cline": (
        CHAT,
        {
            "messages": [{"role": "system", "content": "s"}, *PARTS],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "reasoning_effort": None,
            "tools": None,
        },
    ),
    "aider": (CHAT, {"messages": ASK, "stream": True, "temperature": 0, "tool_choice": None}),
    "vercel-ai-sdk": (
        CHAT,
        {
            "messages": ASK,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 400,
            "response_format": {"type": "text"},
            "verbosity": "medium",
            "store": False,
            "prompt_cache_key": "k",
            "safety_identifier": "u",
        },
    ),
    "lm-eval": (
        TEXT,
        {
            "prompt": [[104, 105], [104]],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
        },
    ),
    "lm-eval-scores-alone": (
        TEXT,
        {"prompt": [[104, 105]], "max_tokens": 0, "logprobs": 1, "echo": True, "temperature": 0},
    ),
    "sillytavern": (
        TEXT,
        {
            "prompt": "hi",
            "stream": True,
            "max_tokens": 350,
            "temperature": 1,
            "top_p": 1,
            "top_k": -1,
            "min_p": 0.1,
            "min_tokens": 0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "length_penalty": 1,
            "early_stopping": False,
            "use_beam_search": False,
            "ignore_eos": False,
            "skip_special_tokens": True,
            "spaces_between_special_tokens": True,
            "include_stop_str_in_output": False,
            "truncate_prompt_tokens": None,
            "guided_json": None,
            "guided_regex": "",
            "guided_choice": [],
            "guided_grammar": "",
            "guided_decoding_backend": None,
            "guided_whitespace_pattern": None,
            "include_reasoning": True,
            "stop": ["\nUser:"],
            "seed": -1,
            "n": 1,
            "best_of": 1,
            "suffix": None,
            "echo": False,
            "logprobs": False,
        },
    ),
    "jan": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "hi", "id": "msg-1"}],
            "stream": True,
            "max_tokens": 2048,
            "stop": [],
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.05,
            "tools": [TOOL],
            "tool_choice": "none",
        },
    ),
    "anything-llm": (
        CHAT,
        {"messages": ASK, "temperature": 0.7, "max_tokens": 1024, "stream": True},
    ),
    "vllm-bench": (
        TEXT,
        {
            "prompt": "hi",
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": 128,
            "logprobs": None,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        },
    ),
    "genai-perf": (
        CHAT,
        {
            "messages": ASK,
            "stream": True,
            "max_tokens": 100,
            "min_tokens": 100,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "llmperf": (
        CHAT,
        {
            "messages": [{"role": "system", "content": ""}, *ASK],
            "stream": True,
            "max_tokens": 150,
        },
    ),
    "haystack": (CHAT, {"messages": ASK, "n": 1, "stream": False, "stop": None, "user": None}),
    "semantic-kernel": (
        CHAT,
        {
            "messages": PARTS,
            "logit_bias": {},
            "n": 1,
            "user": "",
            "stream": False,
            "store": False,
            "modalities": ["text"],
            "service_tier": "auto",
            "top_logprobs": None,
        },
    ),
    "instructor-markdown": (CHAT, {"messages": ASK, "response_format": None, "functions": None}),
    "vllm-dump": (
        CHAT,
        {
            "messages": ASK,
            "priority": 0,
            "request_id": None,
            "add_generation_prompt": True,
            "continue_final_message": False,
            "add_special_tokens": False,
            "return_token_ids": None,
            "stop_token_ids": [],
            "bad_words": [],
            "logits_processors": None,
            "cache_salt": None,
            "kv_transfer_params": None,
            "mm_processor_kwargs": None,
            "chat_template_kwargs": {"enable_thinking": False},
            "documents": None,
            "echo": False,
            "reasoning_effort": "none",
        },
    ),
}
del BODIES["litellm"][1]["drop"]


@pytest.mark.parametrize("client", BODIES)
def test_what_a_client_sends_is_answered(server: Running, client: str) -> None:
    path, body = BODIES[client]
    answer = server.http.post(path, json={"model": "base"} | body)
    assert answer.status_code == 200, answer.text
    params = [asked.params for asked in server.loop.asked]
    room = [server.loop.max_context - len(asked.prompt) for asked in server.loop.asked]
    asked_for = body.get(
        "max_tokens", body.get("max_completion_tokens", 16 if path == TEXT else 999)
    )
    assert [it.max_tokens for it in params] == [min(asked_for, left) for left in room]
    assert all(it.min_tokens == body.get("min_tokens", 0) for it in params)


def chunks(server: Running, path: str, **fields: object) -> list[dict[str, Any]]:
    answer = server.http.post(path, json={"model": "base", "stream": True} | fields)
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(it) for it in events]


@pytest.mark.parametrize(("path", "ask"), [(CHAT, {"messages": ASK}), (TEXT, {"prompt": "hi"})])
def test_every_chunk_may_have_its_counts(
    server: Running, path: str, ask: dict[str, object]
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    server.loop.pause_s = 0.02
    *counted, last = chunks(server, path, stream_options=options, n=2, **ask)
    prompt = len(server.loop.asked[0].prompt)
    for choice in (0, 1):
        usage = [it["usage"] for it in counted if it["choices"][0]["index"] == choice]
        told = [it["completion_tokens"] for it in usage]
        assert told == sorted(told) and told[-1] == 5  # with the end token
        assert {it["prompt_tokens"] for it in usage} == {prompt}
        assert all(it["total_tokens"] == prompt + it["completion_tokens"] for it in usage)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 10
    assert "prompt_tokens_details" in last["usage"]


def test_each_chunk_counts_its_own_prompt(server: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *counted, _ = chunks(server, TEXT, stream_options=options, prompt=["a", "bcd"], n=2)
    told = {it["choices"][0]["index"]: it["usage"]["prompt_tokens"] for it in counted}
    assert told == {0: 1, 1: 1, 2: 3, 3: 3}


@pytest.mark.parametrize("asked", [{}, {"continuous_usage_stats": True}])
def test_no_chunk_has_counts_without_include_usage(
    server: Running, asked: dict[str, object]
) -> None:
    assert all("usage" not in it for it in chunks(server, CHAT, stream_options=asked, messages=ASK))


REFUSED = [
    (CHAT, {"tools": [TOOL]}, "tools"),
    (CHAT, {"tools": [TOOL], "tool_choice": "auto"}, "tools"),
    (CHAT, {"tools": [TOOL] * 129, "tool_choice": "none"}, "tools"),
    (CHAT, {"tools": [{"a": "b" * 70_000}], "tool_choice": "none"}, "tools"),
    (CHAT, {"tool_choice": "required"}, "tool_choice"),
    (CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
    (CHAT, {"verbosity": "low"}, "verbosity"),
    (CHAT, {"priority": 1}, "priority"),
    (CHAT, {"priority": False}, "priority"),
    (CHAT, {"store": True}, "store"),
    (CHAT, {"min_tokens": -1}, "min_tokens"),
    (CHAT, {"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    (TEXT, {"min_tokens": 17}, "min_tokens"),
    (CHAT, {"chat_template_kwargs": {str(n): n for n in range(33)}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"a": ["b"] * 9000}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": 3}, "chat_template_kwargs"),
    (
        CHAT,
        {"add_generation_prompt": True, "continue_final_message": True},
        "continue_final_message",
    ),
    (CHAT, {"top_k": -2}, "top_k"),
    (CHAT, {"messages": [*ASK, {"role": "user", "refusal": "no"}]}, "messages[1].refusal"),
    (CHAT, {"messages": [{"role": "user", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    (TEXT, {"suffix": "x"}, "suffix"),
    (TEXT, {"tools": [TOOL]}, "tools"),
    (TEXT, {"logprobs": True}, "logprobs"),
    (TEXT, {"add_special_tokens": False}, "add_special_tokens"),
    *((TEXT, {name: "x"}, name) for name in ("guided_regex", "structured_outputs")),
]


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED)
def test_what_would_change_the_answer_is_refused(
    serve: Serve, path: str, fields: dict[str, object], param: str
) -> None:
    server = serve(max_body_bytes=200_000)
    body = {"model": "base"} | ({"messages": ASK} if path == CHAT else {"prompt": "hi"}) | fields
    answer = server.http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert param in error["message"] and len(error["message"]) < 600
    assert server.loop.asked == []
