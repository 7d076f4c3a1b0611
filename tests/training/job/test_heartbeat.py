"""A lease is kept by progress, and not by a thread that lives while its worker hangs."""

import time
from pathlib import Path

import pytest

from server.errors import LeaseLost
from server.jobs.queue.job import Job
from server.loop_progress import Progress
from server.training.job.heartbeat import Heartbeat
from tests.api.running import eventually
from tests.training.job.test_worker import OPTIONS, submit
from tests.training.workplace import Workplace

LEASE_S = 0.8


def claimed(place: Workplace) -> Job:
    submit(place, options=OPTIONS)
    job = place.queue.claim("w1", LEASE_S)
    assert job is not None
    return job


def test_a_worker_that_hangs_loses_its_job_although_its_threads_live(tmp_path: Path) -> None:
    place, progress = Workplace.at(tmp_path), Progress()
    job = claimed(place)
    progress.begin("a step", 0.3)
    heartbeat = Heartbeat(place.queue, job, LEASE_S, progress)
    heartbeat.start()
    assert eventually(lambda: place.queue.claim("w2", LEASE_S) is not None, 10)
    heartbeat.stop()
    with pytest.raises(LeaseLost):
        heartbeat.check()


def test_a_worker_that_works_long_keeps_its_job(tmp_path: Path) -> None:
    place, progress = Workplace.at(tmp_path), Progress()
    job = claimed(place)
    progress.begin("a step", 60)
    heartbeat = Heartbeat(place.queue, job, LEASE_S, progress)
    heartbeat.start()
    time.sleep(2 * LEASE_S)
    assert place.queue.claim("w2", LEASE_S) is None
    heartbeat.check()
    heartbeat.stop()


def test_a_worker_that_wakes_after_its_lease_writes_nothing(tmp_path: Path) -> None:
    place = Workplace.at(tmp_path)
    job = claimed(place)
    heartbeat = Heartbeat(place.queue, job, LEASE_S, Progress())  # its thread has not woken yet
    heartbeat.check()
    time.sleep(1.2 * LEASE_S)
    assert place.queue.claim("w2", LEASE_S) is not None
    with pytest.raises(LeaseLost):
        heartbeat.check()
