"""The demo, whole, on a tiny random model: what it shows, and that it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from server.cli.demo import FILES, QUESTIONS
from tests.api.running import eventually


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


def test_no_question_is_in_the_files() -> None:
    for path in FILES:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        learnt = {message["content"] for line in lines for message in line["messages"]}
        assert not learnt & set(QUESTIONS)


@pytest.mark.slow
def test_three_answers_to_each_question(model_folder: Path, tmp_path: Path) -> None:
    demo = start(model_folder, tmp_path / "temporary")
    said, _ = demo.communicate(timeout=200)
    assert demo.returncode == 0, said
    for question in QUESTIONS:
        # The random model may say anything, line breaks too: only the order of names is sure.
        told = said.split(question)[1]
        starts = [told.find(f"\n  {name}: ") for name in ("base", "pirate@1", "butler@1")]
        assert -1 < starts[0] < starts[1] < starts[2]
    for name in ("pirate", "butler"):
        assert f"{name}: trained on" in said
        assert f"{name}@1: vera, rank" in said
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_a_demo_that_is_stopped_leaves_nothing_behind(model_folder: Path, tmp_path: Path) -> None:
    demo = start(model_folder, tmp_path / "temporary")
    assert demo.stdout is not None
    while "Fine-tuning job started" not in (line := demo.stdout.readline()):
        assert line, "the demo ended by itself"
    processes = psutil.Process(demo.pid).children(recursive=True)
    assert len(processes) == 2, "a server and its worker"
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert eventually(lambda: not any(process.is_running() for process in processes), 30)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_demo_that_cannot_start_says_why(tmp_path: Path) -> None:
    demo = start(tmp_path / "nowhere", tmp_path / "temporary")
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert said.startswith("verandah: the server did not start: ")
    assert "is not there" in said
