"""Keep a claimed job's lease, and learn from the queue when to stop. Knows no training."""

import logging
import threading
import time
from types import TracebackType

from server.errors import LeaseLost, Unavailable
from server.jobs.queue.job import Job
from server.jobs.queue.job_queue import JobQueue

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 2.0  # also how long a cancelled or paused job may go on, at most


class JobCancelled(Exception):
    """The job's owner wants it to end."""


class JobPaused(Exception):
    """The job's owner wants it saved and put aside."""


class Heartbeat:
    """Beats from a thread of its own while a job is worked on; a context manager."""

    def __init__(self, queue: JobQueue, job: Job, lease_s: float) -> None:
        self._queue = queue
        self._job = job
        self._pause_s = min(_LONGEST_PAUSE_S, lease_s / 4)
        self._end = threading.Event()
        self._lost: LeaseLost | None = None
        self._stop_request = job.stop_request
        self._step: int | None = None
        self._tokens: int | None = None
        self._finish: int | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def tell(self, step: int, trained_tokens: int, seconds_left: float) -> None:
        """Say how far the job is; the queue hears of it with the next beat."""
        self._step, self._tokens = step, trained_tokens
        self._finish = int(time.time() + seconds_left)

    def check(self) -> None:
        """Raise LeaseLost if the job is another's by now, JobCancelled if it is to end, JobPaused
        if it is to wait.
        """
        if self._lost is not None:
            raise self._lost
        if self._stop_request == "cancel":
            raise JobCancelled
        if self._stop_request == "pause":
            raise JobPaused

    def beat(self) -> None:
        """Beat now, and `check`."""
        try:
            self._stop_request = self._queue.heartbeat(
                self._job,
                step=self._step,
                estimated_finish=self._finish,
                trained_tokens=self._tokens,
            )
        except LeaseLost as lost:
            self._lost = lost
        self.check()

    def _run(self) -> None:
        while not self._end.wait(self._pause_s):
            try:
                self.beat()
            except (LeaseLost, JobCancelled):
                return  # the worker sees it at its next check
            except JobPaused:
                continue  # the worker sees it; until it has saved the job, it must keep it
            except Unavailable as error:  # the lease may outlive it
                log.warning("no heartbeat for job %s: %s", self._job.id, error)
