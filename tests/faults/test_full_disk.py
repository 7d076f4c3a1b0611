"""A disk without room: training goes on, its result waits, and then the job says why it failed."""

import errno
import io
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from server.jobs.queue.job import Job, JobStatus
from server.training.job.worker_loop import run_worker
from server.training.run import checkpoint
from tests.adapters.made import make_adapter
from tests.training.job.test_worker import OPTIONS, job_now, submit, until, work_off, working
from tests.training.workplace import OWNER, Workplace, load_tiny

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


def test_a_disk_that_fails_otherwise_is_not_called_full(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/a/path")

    monkeypatch.setattr(place.store, "publish", refuse)
    job = submit(place, options=SHORT)
    with working(place, disk_retry_s=0.5):
        until(lambda: job_now(place, job).status.ended)
    error = job_now(place, job).error
    assert error is not None
    assert error.code == "disk_failed"
    assert "Read-only file system" in error.message
    assert "look at its disk" in error.message
    assert "/a/path" not in error.message


def test_a_job_of_a_damaged_name_ends_at_once(place: Workplace) -> None:
    work_off(place, submit(place, options=SHORT))
    (place.home / "adapters" / OWNER / "pirate" / "latest").unlink()
    began = time.monotonic()
    ended = work_off(place, submit(place, options=SHORT))
    assert ended.status == JobStatus.FAILED
    assert ended.error is not None
    assert ended.error.code == "training_failed"
    assert "latest is missing: restore it, or delete the adapter 'pirate'" in ended.error.message
    assert time.monotonic() - began < 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of few megabytes, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_really_full_can_be_freed(small_disk: Path) -> None:
    made = Workplace.at(small_disk)
    made.database.reserve_room()

    def upload() -> str:
        return made.files.create(OWNER, "x", "fine-tune", io.BytesIO(b"x" * 5000)).id

    files = [upload() for _ in range(30)]
    adapter = make_adapter(load_tiny()[0])
    for name in ("poet", "poet", "poet", "sage"):
        made.store.publish(OWNER, name, adapter.manifest, adapter.tensors)
    with (small_disk / "fill").open("wb", buffering=0) as fill, suppress(OSError):
        while True:
            fill.write(b"x" * 4096)
    with pytest.raises(OSError, match=FULL):
        upload()
    assert made.store.delete(OWNER, "poet", 3) == [3]
    assert made.store.resolve(OWNER, "poet").version == 2
    assert made.store.delete(OWNER, "poet") == [1, 2]
    for file in files:
        made.files.delete(OWNER, file)
    assert made.files.list(OWNER).items == ()
    assert not [*(small_disk / "adapters" / ".staging").iterdir()]
    (small_disk / "fill").unlink()
    assert made.store.publish(OWNER, "poet", adapter.manifest, adapter.tensors).version == 4
    made.database.close()
