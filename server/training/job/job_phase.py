"""A job that a worker has claimed: what each phase of it has, and how it ends. Knows no trainer.

The phases are `ClaimedJob`, `RunningJob` and `EvaluatedJob`. Each holds only what exists by then,
and its methods return the next. What fails raises, and `end` says what that means for the job.
After a worker was killed, the next attempt finds its checkpoints on the disk, and by the job's id
what it published.
"""

import io
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from adapters_store import disk
from adapters_store.store import AdapterStore
from server.errors import Conflict, LeaseLost, RequestTooLarge, Unavailable
from server.jobs.files.file_store import RESULTS, Files
from server.jobs.queue.job import Job, Level
from server.jobs.queue.job_queue import JobQueue
from server.loop_progress import LONG_SILENCE_S, StepProgress
from server.training.job.heartbeat import Heartbeat, JobCancelled, JobPaused
from server.training.job.metrics_file import MetricsFile
from server.training.job.run_report import reason_of
from server.training.job.start import MayCopy
from server.training.run.checkpoint import CheckpointFolder

log = logging.getLogger(__name__)

_SAVE_S = 600.0

DISK_ERRORS = (OSError, SafetensorError)
"""What writing raises: safetensors' own writer wraps what the system says."""


@dataclass(frozen=True)
class JobServices:
    """What a worker needs for every job.

    `served_name` is the id under which users ask for the base. `folder` holds one folder of
    checkpoints per job. `max_rank` is the largest that the server serves. A job goes to another
    worker after `lease_s` seconds without a heartbeat. While the disk has no space for an adapter,
    the worker tries to write it again for `disk_retry_s` seconds. `progress` is the worker's.
    `may_copy` says whose adapters an owner's job may continue.
    """

    queue: JobQueue
    files: Files
    store: AdapterStore
    served_name: str
    folder: Path
    max_rank: int = 1024
    lease_s: float = 30
    checkpoint_every_s: float = 20
    disk_retry_s: float = 600
    progress: StepProgress = field(default_factory=StepProgress)
    may_copy: MayCopy = lambda owner, of, _name: owner == of

    def saving(self) -> AbstractContextManager[None]:
        """Around writing tensors, during which no other thread may run for a while."""
        return self.progress.during("saving", _SAVE_S, LONG_SILENCE_S)


class JobFolder:
    """The files of one job on the worker's disk; `lock` is held while the job publishes."""

    def __init__(self, folder: Path, job_id: str) -> None:
        self.checkpoints = CheckpointFolder(folder / job_id)
        self.best = CheckpointFolder(folder / job_id / "best", keep=1)
        self.metrics = MetricsFile(folder / job_id / "results.csv")
        self.lock = folder / f"{job_id}.lock"

    def clear(self) -> None:
        """Remove all but the lock."""
        self.best.clear()
        self.metrics.clear()
        self.checkpoints.clear()


class Claim:
    """A job that is this worker's, from now until `close`, and what it is worked on with."""

    def __init__(self, services: JobServices, job: Job) -> None:
        self.services = services
        self.job = job
        self.folder = JobFolder(services.folder, job.id)
        self.heartbeat = Heartbeat(services.queue, job, services.lease_s, services.progress)
        self.heartbeat.start()

    def close(self) -> None:
        """Stop keeping the lease."""
        self.heartbeat.stop()

    def add_event(self, level: Level, message: str) -> None:
        """Add an event to the job. Raises LeaseLost."""
        self.services.queue.append_event(self.job, level, message)

    def remove_files(self) -> None:
        """Leave nothing on the worker's disk: the job has ended.

        Who waits for the lock learns from the queue that there is no more to do.
        """
        try:
            self.folder.clear()
            self.folder.lock.unlink(missing_ok=True)
        except OSError as error:  # a later worker sweeps
            log.warning("job %s leaves files behind: %s", self.job.id, error)

    def warn_of_disk(self, failure: str, error: Exception, consequence: str) -> None:
        log.warning("job %s: %s: %s", self.job.id, failure, error)
        remedy = disk_remedy(error)
        remedy = remedy[0].upper() + remedy[1:]
        self.add_event("warn", f"{failure} ({disk_reason(error)}). {consequence} {remedy}")

    def store_metrics(self) -> None:
        """Make the metrics of all steps a file of the job's owner, unless that was done."""
        files, job = self.services.files, self.job
        name = f"step_metrics-{job.id}.csv"
        try:
            stored = files.named(job.owner, name, RESULTS)
            if stored is None:
                table = io.BytesIO(self.folder.metrics.table())
                stored = files.create(job.owner, name, RESULTS, table)
        except (OSError, RequestTooLarge, Conflict) as error:  # the adapter is published even so
            log.warning("job %s has no file of metrics: %s", job.id, error)
            message = "The file of metrics could not be written. The job's events have most of them"
            self.add_event("warn", message)
            return
        self.services.queue.add_results(job, stored.id)


@dataclass(eq=False)
class JobPhase:
    """A job in one phase of its work."""

    claim: Claim

    def give_back(self) -> None:
        """Save the job and return it to the queue, or leave it where its owner wants it."""
        self.save()
        self.claim.services.queue.release(self.claim.job)

    def end(self, error: Exception) -> None:
        """Say what a failure means for the job, which is no longer this worker's afterwards."""
        job = self.claim.job
        try:
            self._end(error)
        except LeaseLost as lost:
            log.warning("%s", lost)
        except Unavailable as reason:  # the lease runs out, and the job is claimed again
            log.warning("job %s stays as it is until its lease ends: %s", job.id, reason)
        except Exception:  # the same, and no other job is touched
            log.exception("job %s stays as it is until its lease ends", job.id)

    def save(self) -> None:
        """Save what would be lost; here nothing is, or all of it is on the disk."""

    def failure_detail(self, code: str) -> str:
        """What the message of a failure with this code must say besides its reason."""
        return ""

    def _end(self, error: Exception) -> None:
        queue, job = self.claim.services.queue, self.claim.job
        if isinstance(error, Unavailable | JobPaused):
            self.save()
        if isinstance(error, LeaseLost | Unavailable):
            raise error
        if isinstance(error, JobPaused):
            queue.park(job)
            return
        if isinstance(error, JobCancelled):
            queue.stop(job)
        else:
            self._fail(error)
        self.claim.remove_files()

    def _fail(self, error: Exception) -> None:
        code, message, param = reason_of(error)
        fault = error if code in ("internal_error", "disk_failed") else None
        log.warning("job %s failed: %s", self.claim.job.id, message, exc_info=fault)
        if self.claim.folder.metrics.has_steps():
            self.claim.store_metrics()
        message += self.failure_detail(code)
        self.claim.services.queue.fail(self.claim.job, code, message, param)


def disk_reason(error: Exception) -> str:
    """What the disk said, without the path, which is no user's business."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def disk_is_full(error: Exception) -> bool:
    """Whether that is what the disk said."""
    try:
        with disk.system_errors():
            raise error
    except Exception as plain:
        return disk.is_full(plain)


def disk_remedy(error: Exception) -> str:
    """What the server's operator must do."""
    if disk_is_full(error):
        return "make room on the server's disk"
    return "let the server's operator look at its disk: the worker's log names the place"
