"""Keep a claimed job's lease, and learn from the queue when to stop. Knows no trainer."""

import logging
import threading
import time

from server.errors import LeaseLost, Unavailable
from server.jobs.queue.job import Job
from server.jobs.queue.job_queue import JobQueue
from server.jobs.queue.training_metrics import TrainingMetrics
from server.loop_progress import Progress, ProgressWatch

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 2.0  # also how long a cancelled or paused job may continue, at most


class JobCancelled(Exception):
    """The job's owner has cancelled it."""


class JobPaused(Exception):
    """The job's owner has paused it: it must be saved and given back."""


class Heartbeat:
    """Renews the lease from a thread of its own, between `start` and `stop`.

    It does so only while the worker's loop makes `progress`: a worker that hangs loses its jobs.
    """

    def __init__(self, queue: JobQueue, job: Job, lease_s: float, progress: Progress) -> None:
        self._queue = queue
        self._job = job
        self._lease_s = lease_s
        self._pause_s = min(_LONGEST_PAUSE_S, lease_s / 4)
        self._watch = ProgressWatch(progress)
        self._renewed_at = time.monotonic()
        self._end = threading.Event()
        self._lost: LeaseLost | None = None
        self._stop_request = job.stop_request
        self._progress: dict[str, int | None] = {}
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Renew the lease from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Renew it no more."""
        self._end.set()
        self._thread.join()

    def report(self, metrics: TrainingMetrics) -> None:
        """Note how far the job is. The next beat writes it to the queue."""
        self._progress = {
            "step": metrics.step,
            "trained_tokens": metrics.trained_tokens,
            "estimated_finish": int(time.time() + (metrics.seconds_left or 0)),
        }

    def check(self) -> None:
        """Raise LeaseLost if the job is another worker's, or JobCancelled or JobPaused if its owner
        asked for that.

        A worker that slept longer than its lease asks the queue first, so that it writes nothing
        over the work of another.
        """
        if self._lost is None and time.monotonic() - self._renewed_at > self._lease_s:
            self._renew()
        if self._lost is not None:
            raise self._lost
        if self._stop_request == "cancel":
            raise JobCancelled
        if self._stop_request == "pause":
            raise JobPaused

    def beat(self) -> None:
        """Beat now, and `check`."""
        self._renew()
        self.check()

    def _renew(self) -> None:
        try:
            self._stop_request = self._queue.heartbeat(self._job, **self._progress)
            self._renewed_at = time.monotonic()
        except LeaseLost as lost:
            self._lost = lost

    def _run(self) -> None:
        while not self._end.wait(self._pause_s):
            if problem := self._watch.overdue():
                log.error("no heartbeat for job %s: %s", self._job.id, problem)
                continue
            try:
                self.beat()
            except (LeaseLost, JobCancelled):
                return  # the worker sees it at its next check
            except JobPaused:
                continue  # the worker needs the lease until it has saved the job
            except Unavailable as error:  # the lease may outlive it
                log.warning("no heartbeat for job %s: %s", self._job.id, error)
