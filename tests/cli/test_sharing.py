"""An engine and a worker that meet on a device. A CPU stands for it: its memory is shared too."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.bases.lending import Loan
from server.bases.model import BaseModel, load_base
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.cli import sharing
from server.cli.sharing import Borrower, lending, open_pulse
from server.config import Settings
from server.jobs.job import JobStatus
from server.pulse import Pulse
from server.training.worker import run_worker
from tests.bases.test_lending import by_name, logits
from tests.training.test_worker import OPTIONS, job_now, submit, until
from tests.training.workplace import OWNER, Workplace

__all__ = ["by_name"]

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(sharing, "device_key", lambda device: "one")
    return Settings(home=tmp_path, model=str(model_folder))


@pytest.fixture
def base(settings: Settings) -> BaseModel:
    return load_base(settings.model, device="cpu")


@pytest.fixture
def pulse(settings: Settings, base: BaseModel) -> Iterator[Pulse]:
    """Of an engine that lends."""
    opened = open_pulse(settings, CUDA)
    assert opened is not None
    with lending(settings, base, opened):
        yield opened


class Own:
    """Loads a copy of a worker's own, and counts how often."""

    def __init__(self, settings: Settings) -> None:
        self._source = settings.model
        self.copies = 0

    def __call__(self) -> tuple[BaseModel, ChatTokenizer]:
        self.copies += 1
        return load_base(self._source, device="cpu"), load_tokenizer(self._source)


def test_a_worker_borrows_and_gives_way(settings: Settings, base: BaseModel, pulse: Pulse) -> None:
    own, stop = Own(settings), threading.Event()
    borrower = Borrower(settings, CUDA, own, stop)
    assert borrower.positions(4096) == 4096
    found, tokenizer = borrower.load()
    assert torch.equal(logits(found), logits(base))
    assert found.fingerprint == base.fingerprint
    assert tokenizer.stream() is not None
    assert own.copies == 0
    pulse.running(1)
    timer = threading.Timer(0.3, lambda: pulse.running(0))
    timer.start()
    logits(found)  # rests at its first layer until nobody asks any more
    timer.join()
    assert not stop.is_set()


def test_a_worker_ends_when_the_engine_is_gone(
    settings: Settings, pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, stop = threading.Event(), threading.Event()
    monkeypatch.setattr(Loan, "wait", lambda loan: gone.wait(30))
    borrower = Borrower(settings, CUDA, Own(settings), stop)
    borrower.load()
    assert not borrower.bereft
    gone.set()
    assert stop.wait(10)
    assert borrower.bereft


def test_no_job_is_lost_with_the_engine(
    settings: Settings, pulse: Pulse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()
    monkeypatch.setattr(Loan, "wait", lambda loan: gone.wait(30))
    place = Workplace.at(tmp_path)
    job = submit(place, options=replace(OPTIONS, n_epochs=40), count=12)

    def work() -> threading.Thread:
        borrower = Borrower(settings, CUDA, Own(settings), stop := threading.Event())
        parts = place.parts(load=borrower.load, positions=borrower.positions)
        thread = threading.Thread(target=run_worker, args=(parts, stop))
        thread.start()
        return thread

    first = work()
    until(lambda: (job_now(place, job).trained_tokens or 0) > 0)
    gone.set()
    first.join(30)
    assert job_now(place, job).status is JobStatus.QUEUED
    gone.clear()
    second = work()
    until(lambda: job_now(place, job).status.ended)
    gone.set()
    second.join(30)
    assert job_now(place, job).status is JobStatus.SUCCEEDED
    events = place.queue.events(OWNER, job.id, limit=100).items
    assert any(event.message.startswith("Going on from step") for event in events)


def test_without_an_engine_a_worker_takes_its_own_copy_and_says_why(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    own = Own(settings)
    Borrower(settings, CUDA, own, threading.Event()).load()
    assert own.copies == 1
    assert "a copy of its own of the base: no engine lends its weights" in caplog.text


def test_on_a_cpu_nothing_is_shared(settings: Settings, base: BaseModel) -> None:
    own = Own(settings)
    assert open_pulse(settings, CPU) is None
    with lending(settings, base, None):
        Borrower(settings, CPU, own, threading.Event()).load()
    assert own.copies == 1
    assert not (settings.home_path / "engines").exists()


def test_an_engine_that_ends_leaves_no_files(settings: Settings, base: BaseModel) -> None:
    pulse = open_pulse(settings, CUDA)
    folder = settings.home_path / "engines"
    with lending(settings, base, pulse):
        assert {file.name for file in folder.iterdir()} == {"one.pulse", "one.socket"}
        assert folder.stat().st_mode & 0o077 == 0
    assert list(folder.iterdir()) == []


def test_a_path_that_is_no_socket_keeps_nobody_from_serving(
    settings: Settings, base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    pulse = open_pulse(settings, CUDA)
    (settings.home_path / "engines" / "one.socket").mkdir()
    with lending(settings, base, pulse):
        assert "workers take copies of their own" in caplog.text
