"""/v1/files/{id}/lines: what the model would see of a file's lines."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from adapters_store.manifest import Manifest
from server.api.jobs import file_line_endpoints
from server.jobs.files.rendered_example import RenderedExample, RenderedToken
from tests.api.fakes import EOS, FakeEstimator
from tests.api.jobs.test_training import JSONL, upload
from tests.api.running import Publish, Running, Serve

BAD = b"nonsense\n" + JSONL.replace(b"q3", b"TOO LONG") + b'\n\n{"prompt": "a"}'


def lines(server: Running, file: str, **query: Any) -> Any:
    answer = server.http.get(f"/v1/files/{file}/lines", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_first_lines_are_shown_token_by_token(server: Running) -> None:
    page = lines(server, upload(server))
    assert (page["object"], page["has_more"]) == ("list", True)
    assert [it["line"] for it in page["data"]] == [1, 2, 3]
    first = page["data"][0]
    assert json.loads(first["text"])["messages"][0]["content"] == "q0"
    assert first["problem"] is None
    (example,) = first["examples"]
    assert (example["tokens"], example["learnt"]) == (4, 2)
    assert example["spans"] == [
        {
            "learnt": False,
            "tokens": [
                {"id": ord("q"), "text": "q", "special": False},
                {"id": ord("0"), "text": "0", "special": False},
            ],
        },
        {
            "learnt": True,
            "tokens": [
                {"id": ord("a"), "text": "a", "special": False},
                {"id": EOS, "text": "<|end|>", "special": True},
            ],
        },
    ]


def test_any_line_can_be_chosen_and_bad_ones_say_why(server: Running) -> None:
    file = upload(server, BAD)
    page = lines(server, file, line=5, limit=2)
    assert [it["line"] for it in page["data"]] == [5, 6]
    assert page["data"][0]["problem"] == "300 tokens are more than the 256"
    assert page["data"][0]["examples"] == []
    assert lines(server, file, limit=1)["data"][0]["problem"].startswith("is not JSON")
    (last,) = lines(server, file, line=12)["data"]
    assert (last["line"], lines(server, file, line=12)["has_more"]) == (13, False)
    assert "has 'prompt'" not in last["problem"], "its own fault comes first"
    assert lines(server, file, line=14)["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [("line=0", "line"), ("line=2000001", "line"), ("limit=21", "limit"), ("page=1", "page")],
)
def test_what_cannot_be_asked_for_is_named(server: Running, query: str, param: str) -> None:
    answer = server.http.get(f"/v1/files/{upload(server)}/lines?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_an_adapter_to_continue_from_is_known(
    server: Running, serve: Serve, publish: Publish
) -> None:
    publish("pirate")
    asked: list[tuple[str, Manifest] | None] = []

    class Noting(FakeEstimator):
        def renderer(
            self, start: tuple[str, Manifest] | None = None
        ) -> Callable[[Mapping[str, object]], list[RenderedExample]]:
            asked.append(start)
            return super().renderer(start)

    manifest = server.services.adapters.open(server.services.adapters.resolve("default", "pirate"))
    base = replace(server.services.base, fingerprint=manifest.manifest.base_fingerprint)
    running = serve(estimator=Noting(), base=base)
    file = upload(running)
    lines(running, file)
    lines(running, file, model="pirate")
    assert asked[0] is None
    assert asked[1] is not None and asked[1][0] == "pirate@1"
    answer = running.http.get(f"/v1/files/{file}/lines?model=none")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_an_answer_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_line_endpoints, "_MOST_TOKENS", 10)
    monkeypatch.setattr(file_line_endpoints, "_MOST_CHARACTERS", 500)

    class Long(FakeEstimator):
        def renderer(
            self, start: tuple[str, Manifest] | None = None
        ) -> Callable[[Mapping[str, object]], list[RenderedExample]]:
            def render(record: Mapping[str, object]) -> list[RenderedExample]:
                messages = record["messages"]
                assert isinstance(messages, Sequence)
                size = 16 if messages[0]["content"] == "q2" else 4
                return [RenderedExample((RenderedToken(1, "a", False, True),) * size)]

            return render

    running = serve(estimator=Long())
    file = upload(running)
    page = lines(running, file, limit=20)
    assert ([it["line"] for it in page["data"]], page["has_more"]) == ([1, 2], True)
    page = lines(running, file, line=3, limit=20)
    (only,) = page["data"]
    assert (only["line"], only["examples"][0]["tokens"], page["has_more"]) == (3, 16, True)
    assert len(only["examples"][0]["spans"][0]["tokens"]) == 10
    wide = JSONL.replace(b"q4", b"q" * 490).replace(b"q5", b"q" * 600)
    page = lines(running, upload(running, wide), line=4, limit=20)
    assert [it["line"] for it in page["data"]] == [4]
    page = lines(running, upload(running, wide), line=6, limit=20)
    assert [it["line"] for it in page["data"]] == [6], "one line comes however long it is"
