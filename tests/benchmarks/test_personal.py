"""The twenty users of the benchmark of personal use: what they upload, and how they are judged."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from adapters_store.store import AdapterStore
from benchmarks.claims.personal.__main__ import EXAMPLES, do_report
from benchmarks.claims.personal.judged import Judge
from benchmarks.claims.personal.styles import bank, styles
from benchmarks.claims.personal.users import User, chat, load, save
from server.adapters.learning.trainable import TrainableAdapter
from server.bases.base_files import load_base


def test_every_style_has_lines_to_learn_and_others_to_ask() -> None:
    found = styles(EXAMPLES)
    assert len(found) == 8
    for pairs in found.values():
        assert len({question for question, _ in pairs}) == len(pairs) >= 45
        assert all(question and answer for question, answer in pairs)
    assert all(first.endswith(".") and second.endswith(".") for _, first, second in bank())


def user() -> User:
    pairs = [(f"What is {number}?", f"It is {number}.") for number in range(12)]
    return User("numbers", "styles", False, pairs[:10], pairs[10:])


def test_only_jobs_that_ended_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user whose adapter was refused has the base; one whose job still runs has no figure yet."""
    ends: list[tuple[str, str | None, dict[str, float]]] = [
        ("succeeded", "mine@1", {"adapter": 1.0}),
        ("failed", None, {}),
        ("running", None, {}),
    ]
    file = tmp_path / "results.jsonl"
    for status, adapter, loss in ends:
        record = {"user": "x", "lines": 30, "status": status, "adapter": adapter, "error": None}
        with file.open("a") as lines:
            losses = {"base": 4.0, "shots": 0.5, **loss}
            print(json.dumps({**record, "losses": losses, "accuracy": None}), file=lines)
    do_report(Namespace(results=file))
    said = capsys.readouterr().out
    assert "better than base: 1 of 2; nats gained, median: 1.50, worst: 0.00" in said
    assert "better than shots: 0 of 2; nats gained, median: -2.00, worst: -3.50" in said


def test_users_come_back_from_their_file(tmp_path: Path) -> None:
    save([user()], tmp_path / "users.jsonl")
    assert load(tmp_path / "users.jsonl") == [user()]
    assert [message.get("weight") for message in chat([("a", "b")], weight=0)] == [None, 0]


def test_losses_of_an_adapter_are_those_that_it_had(tmp_path: Path) -> None:
    base = load_base("porch", device="cpu")
    adapter = TrainableAdapter(base, "vera", 4, 0, "all-linear", {"alpha": 8.0})
    with torch.no_grad():
        adapter.parameters()[0].add_(0.05)
    manifest = adapter.manifest(created_at=1, provenance={})
    ref = AdapterStore(tmp_path).publish("someone", "numbers", manifest, adapter.tensors())
    judge = Judge("porch", tmp_path, "cpu")
    plain, found = judge.losses(user(), None), judge.losses(user(), str(ref))
    assert set(plain) == {"base", "shots"}
    assert found["base"] == pytest.approx(plain["base"])
    assert found["adapter"] != pytest.approx(plain["base"], rel=1e-3)
