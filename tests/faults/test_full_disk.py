"""A disk without room: training goes on, its result waits, and then the job says why it failed."""

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from server.jobs.queue.job import Job, JobStatus
from server.training.job.worker_loop import run_worker
from server.training.run import checkpoint
from tests.training.job.test_worker import OPTIONS, job_now, submit, until, work_off, working
from tests.training.workplace import OWNER, Workplace

SHORT = replace(OPTIONS, n_epochs=2, publish="always")
FULL = "No space left on device"


class Disk:
    """Refuses checkpoints, and versions of adapters, for as long as it is `full`."""

    def __init__(self, place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        self.refused = 0
        publish = place.store.publish

        def saved(*args: object, **options: object) -> None:
            self._ask(SafetensorError(f"I/O error: {FULL} (os error 28)"))
            save_file(*args, **options)  # type: ignore[arg-type]

        def published(*args: object, **options: object) -> object:
            self._ask(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/path"))
            return publish(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(checkpoint, "save_file", saved)
        monkeypatch.setattr(place.store, "publish", published)

    def _ask(self, error: Exception) -> None:
        if self.full:
            self.refused += 1
            raise error


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


@pytest.fixture
def disk(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(place, monkeypatch)


def warnings(place: Workplace, job: Job) -> list[str]:
    events = place.queue.events(OWNER, job.id, limit=1000).items[::-1]
    return [event.message for event in events if event.level == "warn" and FULL in event.message]


def test_what_cannot_be_saved_is_trained_and_published_all_the_same(
    place: Workplace, disk: Disk
) -> None:
    job = submit(place, options=SHORT)
    with working(place):
        until(lambda: len(warnings(place, job)) == 2)
        disk.full = False
        until(lambda: job_now(place, job).status.ended)
    assert job_now(place, job).fine_tuned_model == "pirate@1"
    assert [text.partition(" (")[0] for text in warnings(place, job)] == [
        "Step 0 could not be saved",
        "The adapter could not be written",
    ]
    assert not list((place.home / "jobs").iterdir())


def test_an_adapter_waits_for_room_and_then_says_why_it_is_not_there(
    place: Workplace, disk: Disk
) -> None:
    job = submit(place, options=SHORT)
    services = replace(place.parts().services, disk_retry_s=0.8)
    stop = threading.Event()
    worker = threading.Thread(
        target=run_worker, args=(replace(place.parts(), services=services), stop), daemon=True
    )
    worker.start()
    until(lambda: job_now(place, job).status.ended)
    disk.full = False
    after = submit(place, options=SHORT, suffix="after")
    until(lambda: job_now(place, after).status.ended)
    stop.set()
    worker.join()
    failed = job_now(place, job)
    assert failed.error is not None
    assert failed.error.code == "disk_full"
    assert FULL in failed.error.message
    assert "/a/path" not in failed.error.message
    assert len(warnings(place, job)) == 2, "a warning for each attempt to write it"
    assert place.store.names(OWNER) == ["after"]
    assert job_now(place, after).status == JobStatus.SUCCEEDED


def test_a_job_that_waits_for_room_obeys_and_holds_up_no_other(
    place: Workplace, disk: Disk
) -> None:
    job = submit(place, options=SHORT)
    with working(place):
        until(lambda: len(warnings(place, job)) == 2)
        late = submit(place, options=SHORT, suffix="late")
        until(lambda: len(warnings(place, late)) == 2)
        place.queue.cancel(OWNER, job.id)
        until(lambda: job_now(place, job).status.ended)
    assert job_now(place, job).status == JobStatus.CANCELLED
    assert job_now(place, late).status == JobStatus.QUEUED, "a worker that stops gives it back"
    disk.full = False
    assert work_off(place, late).fine_tuned_model == "late@1"


def test_a_worker_that_stops_while_the_disk_is_full_fails_no_job(
    place: Workplace, disk: Disk
) -> None:
    job = submit(place, options=replace(SHORT, n_epochs=500))
    with working(place):
        until(lambda: disk.refused > 3)
    assert job_now(place, job).status == JobStatus.QUEUED
