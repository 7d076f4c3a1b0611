"""The demo, whole, on a tiny random model: what it shows, and that it leaves nothing behind."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clients.python import ClientError
from server.__main__ import main
from server.bases.short_names import SHORT_NAMES, ShortName
from server.cli import demo
from server.cli.demo import FILES, HELD_OUT, QUESTIONS
from server.config import Settings
from server.errors import FetchFailed
from tests.api.running import eventually
from tests.cli.test_default_base import PORCH, home_of

VERSIONS = ("pirate@1", "butler@1", "intents@1")


def start(model_folder: Path, temporary: Path, *options: str) -> subprocess.Popen[str]:
    temporary.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "server", "demo", f"--model={model_folder}", *options],
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(temporary),
            "VERANDAH_KV_MEMORY_MB": "8",
            "COLUMNS": "200",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_demo_serves_where_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its server is not started: what it would be told is."""
    asked: list[Settings] = []

    @contextlib.contextmanager
    def server(settings: Settings, _console: object) -> Iterator[str]:
        asked.append(settings)
        raise ClientError("enough")
        yield ""

    monkeypatch.setattr(demo, "_server", server)
    monkeypatch.setattr(demo, "exit_on_sigterm", lambda _status: None)
    monkeypatch.delenv("VERANDAH_PORT", raising=False)
    reached = ["--host", "0.0.0.0", "--insecure", "--home", str(tmp_path / "a")]
    assert main(["demo", "--port", "9123", *reached]) == 1
    assert main(["demo"]) == 1
    monkeypatch.setenv("VERANDAH_PORT", "9124")
    assert main(["demo"]) == 1
    assert [settings.port for settings in asked] == [9123, 0, 9124]
    assert [settings.host for settings in asked] == ["0.0.0.0", "127.0.0.1", "127.0.0.1"]
    assert asked[0].home == tmp_path / "a" and asked[1].home != asked[2].home
    assert not (tmp_path / "a").exists(), "its server makes the home once all is checked"


def test_a_demo_needs_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--no-worker"]) == 2
    assert "--no-worker: the demo trains adapters" in capsys.readouterr().err


def contents(path: Path) -> list[list[str]]:
    lines = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [[message["content"] for message in messages] for messages in lines]


def test_no_question_is_in_the_files() -> None:
    asked = {*QUESTIONS, *(command for command, _ in contents(HELD_OUT))}
    asked = {question.casefold() for question in asked}
    for path in FILES:
        assert not asked & {text.casefold() for line in contents(path) for text in line}


def test_the_intents_are_even_and_the_same_in_both_files() -> None:
    trained, held_out = (
        Counter(name for _, name in contents(path)) for path in (FILES[2], HELD_OUT)
    )
    assert (len(trained), set(trained.values()), set(held_out.values())) == (7, {40}, {10})
    assert set(trained) == set(held_out)


def stopped_before_its_server(monkeypatch: pytest.MonkeyPatch, bring: object) -> list[str]:
    """Run the demo up to its server without a base that is named; returns the bases taken."""
    taken: list[str] = []

    def server(settings: Settings, _console: object) -> None:
        taken.append(settings.model)
        raise ClientError("enough")

    monkeypatch.delenv("VERANDAH_MODEL")
    monkeypatch.setattr(demo, "_server", server)
    monkeypatch.setattr(demo, "exit_on_sigterm", lambda _status: None)
    monkeypatch.setattr(demo, "fetch_with_bar", bring)
    assert main(["demo"]) == 1
    return taken


def test_without_a_network_it_goes_on_with_porch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(row: ShortName, _console: object) -> None:
        raise FetchFailed(f"no network for {row.name}")

    assert stopped_before_its_server(monkeypatch, unreachable) == ["porch"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "verandah: no network for smollm2-q4_1. The demo goes on with porch, a toy that is always "
        "here"
    )
    assert lines[1].startswith("verandah: the base model is porch: ")
    assert main(["demo", "--model", "porch"]) == 1
    assert capsys.readouterr().err == "verandah: enough\n", "nothing to fetch, and nothing to say"


def test_what_was_fetched_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetched(row: ShortName, _console: object) -> None:
        path = tmp_path / "verandah" / "fetched" / f"{row.name}.gguf"
        path.parent.mkdir(parents=True)
        path.touch()
        os.truncate(path, row.file_bytes)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stopped_before_its_server(monkeypatch, fetched) == [next(iter(SHORT_NAMES))]


def test_a_home_that_the_demo_does_not_use_does_not_choose_its_base(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --home its home is a new one, whatever lies in the user's own."""
    home_of(tmp_path, PORCH).rename(tmp_path / ".verandah")
    monkeypatch.setenv("HOME", str(tmp_path))
    brought: list[str] = []
    taken = stopped_before_its_server(monkeypatch, lambda row, _console: brought.append(row.name))
    assert (brought, taken) == (["smollm2-q4_1"], ["porch"])
    assert "the home has adapters" not in capsys.readouterr().err


@pytest.mark.slow
def test_four_answers_to_each_question(model_folder: Path, tmp_path: Path) -> None:
    running = start(model_folder, tmp_path / "temporary")
    said, _ = running.communicate(timeout=200)
    assert running.returncode == 0, said
    for question in QUESTIONS:
        # The random model may say anything, line breaks too: only the order of names is sure.
        told = said.split(question)[1]
        starts = [told.find(f"\n  {name}: ") for name in ("base", *VERSIONS)]
        assert starts == sorted(starts) and starts[0] > -1
    assert "What do 70 spoken commands ask for?" in said
    for who in ("base, which is told the 7 names", "intents@1"):
        assert re.search(rf"\n  {who}: \d+ right \(\d+%\)\n", said)
    for name in ("pirate", "butler", "intents"):
        assert f"{name}: trained on" in said
        assert f"{name}@1: vera, rank" in said
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_a_demo_that_is_stopped_leaves_nothing_behind(model_folder: Path, tmp_path: Path) -> None:
    running = start(model_folder, tmp_path / "temporary")
    assert running.stdout is not None
    while "Fine-tuning job started" not in (line := running.stdout.readline()):
        assert line, "the demo ended by itself"
    processes = psutil.Process(running.pid).children(recursive=True)
    assert len(processes) == 2, "a server and its worker"
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert eventually(lambda: not any(process.is_running() for process in processes), 30)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_demo_that_cannot_start_says_why(tmp_path: Path) -> None:
    running = start(tmp_path / "nowhere", tmp_path / "temporary")
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert said.startswith("verandah: ")
    assert "is not there" in said


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        running = start(Path("porch"), tmp_path / "temporary", "--port", port)
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert f"did not start: verandah: cannot listen at 127.0.0.1:{port}: another program" in said
