"""Refusals name every wrong field at once, in plain words and within bounds."""

import json
from typing import Any

import pytest

from tests.api.running import Running

CHAT, TEXT, JOBS = "/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"
ASK = [{"role": "user", "content": "hi"}]


def refused(server: Running, path: str, body: object, **headers: str) -> dict[str, Any]:
    sent = {"content-type": "application/json"} | headers
    answer = server.http.post(path, content=json.dumps(body), headers=sent)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    for foreign in ("Input should", "Field required", "Extra inputs", "should have", "valid "):
        assert foreign not in error["message"]
    return error


CASES: list[tuple[str, dict[str, object], list[str]]] = [
    (
        CHAT,
        {
            "model": "base",
            "messages": ASK,
            "temprature": 1,
            "temperature": 3,
            "n": 0,
            "tools": [{"type": "function"}],
            "seed": 1.5,
            "stream": "yes",
            "stop": [""],
            "user": 3,
        },
        [
            "n=0 is below 1: give at least 1",
            "stream='yes' is not true or false: give one of them",
            "stop=[''] holds an empty string: leave it out",
            "seed=1.5 is not a whole number: give one",
            "temperature=3 is above 2.0: give at most 2.0",
            "tools=[{'type': 'function'}] is not supported: leave it out, or send "
            'tool_choice="none"',
            "temprature=1 is unknown: leave it out (did you mean temperature?)",
        ],
    ),
    (
        CHAT,
        {
            "messages": [{"role": "wizard", "content": 3, "tool_calls": [1], "rolle": 1}],
            "stream_options": {"include_usge": True},
            "max_completion_tokens": 4,
            "max_tokens": 3,
            "logprobs": False,
            "top_logprobs": 2,
            "logit_bias": {"a": 1},
        },
        [
            "model is missing: give it",
            "stream_options.include_usge=True is unknown: leave it out (did you mean "
            "include_usage?)",
            "logit_bias={'a': 1} holds 'a', which is no token id: write its digits",
            "messages[0].role='wizard' is not one of 'system', 'developer', 'user' or "
            "'assistant': give one of them",
            "messages[0].content=3 is not text: give a string",
            "messages[0].tool_calls=[1] is not supported: leave it out",
            "messages[0].rolle=1 is unknown: leave it out (did you mean role?)",
            "max_tokens=3 is not max_completion_tokens: send one of them",
            "top_logprobs=2 needs logprobs=true: send both",
        ],
    ),
    (
        TEXT,
        {"model": None, "prompt": [1, "a"], "logprobs": 21, "zzzz": None, "suffix": "x"},
        [
            "suffix='x' is not supported: leave it out",
            "model=None is not text: give a string",
            "prompt=[1, 'a'] is not text, a list of token ids, or a list of either: give one of "
            "them",
            "logprobs=21 is above 20: give at most 20",
            "zzzz=None is unknown: leave it out",
        ],
    ),
    (
        JOBS,
        {"training_fil": "x", "model": "base", "integrations": [1], "seed": -1, "suffix": 3},
        [
            "training_file is missing: give it",
            "suffix=3 is not text: give a string",
            "seed=-1 is below 0: give at least 0",
            "integrations=[1] is not supported: leave it out",
            "training_fil='x' is unknown: leave it out (did you mean training_file?)",
        ],
    ),
]


@pytest.mark.parametrize(("path", "body", "expected"), CASES)
@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_every_wrong_field_is_named(
    server: Running, path: str, body: dict[str, object], expected: list[str], kind: str
) -> None:
    error = refused(server, path, body, **{"content-type": kind})
    assert error["message"].split("; ") == expected
    assert error["param"] == expected[0].split()[0].partition("=")[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"rank": 0, "schedule": "zig", "dropout": 2},
            ["schedule='zig' is not one of", "rank=0 is not", "dropout=2 is not"],
        ),
        (
            {"rnak": 5, "epochs": 2, "rank": "x"},
            [
                "unknown hyperparameter 'rnak' (did you mean rank?)",
                "unknown hyperparameter 'epochs' (did you mean n_epochs?)",
                "known are method, ",
                "rank='x' is not a whole number",
            ],
        ),
    ],
)
def test_every_wrong_option_of_training_is_named(
    server: Running, options: dict[str, object], expected: list[str]
) -> None:
    body = {"model": "base", "training_file": "file-1", "hyperparameters": options}
    told = refused(server, JOBS, body)["message"].split("; ")
    assert len(told) == len(expected)
    assert all(text.startswith(begin) for text, begin in zip(told, expected, strict=True)), told


def test_every_wrong_message_of_a_short_chat_is_named(server: Running) -> None:
    wrong = [{"role": "user", "content": "a", "x": 1}, *ASK, {"role": "user", "audio": {}}]
    error = refused(server, CHAT, {"model": "base", "messages": wrong, "n": 0})
    assert error["message"].split("; ") == [
        "n=0 is below 1: give at least 1",
        "messages[0].x=1 is unknown: leave it out",
        "messages[2].audio={} is not supported: leave it out",
    ]
    error = refused(server, CHAT, {"model": "base", "messages": wrong * 20})
    assert error["message"] == "messages[0].x=1 is unknown: leave it out"


def test_a_refusal_is_bounded(server: Running) -> None:
    many = {f"{'x' * 90}{n}": "y" * 100 for n in range(60)}
    error = refused(server, CHAT, {"model": "base", "messages": ASK} | many)
    assert error["message"].endswith("; and 44 more fields are wrong")
    assert len(error["message"]) < 16 * 400
    error = refused(server, CHAT, {"model": "base", "messages": ASK, "n" * 9000: "v" * 9000})
    assert len(error["message"]) < 500 and len(error["param"]) <= 200
    error = refused(server, CHAT, {str(n): n for n in range(200)})
    assert error["message"].startswith("the body=") and "more than 128 fields" in error["message"]


def test_unknown_parameters_of_queries_and_forms_are_all_named(server: Running) -> None:
    error = server.http.get("/v1/fine_tuning/jobs?limt=3&zzz=2").json()["error"]
    assert error["message"].startswith(
        "the query parameters 'limt' (did you mean limit?), 'zzz' are unknown: this endpoint has "
    )
    assert error["param"] == "limt"
    form = {"purpos": "fine-tune", "zzz": "1"}
    error = server.http.post("/v1/files", data=form, files={"fil": b"x"}).json()["error"]
    assert (
        "'purpos' (did you mean purpose?), 'zzz', 'fil' (did you mean file?) are unknown"
        in (error["message"])
    )
    error = server.http.get("/v1/fine_tuning/jobs?limit=x").json()["error"]
    assert error["message"] == "limit='x' is not a whole number: give one"


@pytest.mark.parametrize("field", ["chat_template_kwargs", "tools"])
def test_half_a_character_is_refused_wherever_it_is(server: Running, field: str) -> None:
    half: dict[str, object] = {"a": [{"\ud800": 1}]}
    value = half if field == "chat_template_kwargs" else [half]
    body = {"model": "base", "messages": ASK, "tool_choice": "none", field: value}
    error = refused(server, CHAT, body)
    assert (error["param"], "surrogate pair" in error["message"]) == (field, True)


def test_a_long_text_is_told_in_characters(server: Running) -> None:
    body = {"model": "base", "training_file": "file-1", "suffix": "a" * 65}
    error = refused(server, JOBS, body)
    assert "has more than 64 characters: give fewer" in error["message"]
    assert error["param"] == "suffix"
