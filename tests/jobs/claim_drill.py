"""A program for test_racing: a worker that claims until nothing is left, and dies where told.

Usage: claim_drill.py URL WORKER LEASE_S DIE_EVERY; prints the ids of the jobs that it finished.
"""

import os
import sys
import time

from server.db.session import Database
from server.errors import LeaseLost
from server.jobs.queue.job import JobStatus
from server.jobs.queue.job_queue import JobQueue


def work(queue: JobQueue, worker: str, lease_s: float, die_every: int) -> None:
    claimed = 0
    while queue.counts()[JobStatus.QUEUED] + queue.counts()[JobStatus.RUNNING]:
        job = queue.claim(worker, lease_s)
        if job is None:
            time.sleep(0.02)
            continue
        claimed += 1
        queue.heartbeat(job, step=job.attempt)
        if die_every and claimed % die_every == 0:
            os._exit(9)
        try:
            queue.finish(job, f"{worker}@1", 1)
        except LeaseLost:
            continue
        print(job.id, flush=True)


if __name__ == "__main__":
    url, name, lease, every = sys.argv[1:]
    work(JobQueue(Database(url)), name, float(lease), int(every))
