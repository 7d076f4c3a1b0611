"""However many workers claim, and however they die, each job is one worker's and ends once."""

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server.db.session import Database
from server.jobs.queue.job import JobStatus
from server.jobs.queue.job_queue import JobQueue
from tests.jobs.conftest import Jobs

REPOSITORY = Path(__file__).parents[2]


def _worker(url: str, name: str, lease_s: float, die_every: int) -> "subprocess.Popen[str]":
    arguments = [url, name, str(lease_s), str(die_every)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.claim_drill", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def _finished(worker: "subprocess.Popen[str]") -> list[str]:
    output, _ = worker.communicate(timeout=120)
    return output.split()


def test_racing_threads_claim_each_job_once(jobs: Jobs) -> None:
    ids = [jobs.create(owner).id for owner in ("ann", "bob", "cat") for _ in range(8)]
    start = threading.Barrier(8)

    def claim_all(worker: int) -> list[str]:
        start.wait(30)
        mine = []
        while job := jobs.queue.claim(f"w{worker}", 1000.0):
            mine.append(job.id)
        return mine

    with ThreadPoolExecutor(8) as pool:
        claimed = [job_id for mine in pool.map(claim_all, range(8)) for job_id in mine]
    # PostgreSQL may tell a worker "nothing" while another holds the last row; the rest still waits.
    while job := jobs.queue.claim("last", 1000.0):
        claimed.append(job.id)
    assert sorted(claimed) == sorted(ids)
    assert {job.attempt for job in jobs.queue.list("ann", limit=100).items} == {1}


def test_racing_processes_finish_each_job_once(jobs: Jobs, url: str) -> None:
    ids = [jobs.create().id for _ in range(30)]
    workers = [_worker(url, f"w{i}", 60.0, 0) for i in range(3)]
    finished = [job_id for worker in workers for job_id in _finished(worker)]
    assert Counter(finished) == Counter(ids)


def test_dying_processes_lose_no_job(jobs: Jobs, url: str) -> None:
    ids = [jobs.create().id for _ in range(12)]
    finished: list[str] = []
    deaths = 0
    database = Database(url)  # by the real clock, as the workers
    queue = JobQueue(database)
    while queue.counts()[JobStatus.SUCCEEDED] < len(ids):
        workers = [_worker(url, f"w{i}", 0.5, 4) for i in range(2)]
        finished += [job_id for worker in workers for job_id in _finished(worker)]
        deaths += sum(worker.returncode == 9 for worker in workers)
    assert deaths >= 2
    assert Counter(finished) == Counter(ids)
    ends = [
        jobs.messages(job).count("The job has successfully completed")
        for job in queue.list("ann", limit=100).items
    ]
    assert ends == [1] * len(ids)
    database.close()
