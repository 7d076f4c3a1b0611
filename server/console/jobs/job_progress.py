"""How far a job is, and what its owner may do with it. Knows no page."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.console.jobs.job_verdict import JobVerdict
from server.jobs.queue.job import Job, JobStatus

_NO_METRICS: Final[Mapping[str, Any]] = {}
REMEDIES: Final[Mapping[str, str]] = {
    "invalid_request": "Correct what the message names, then start a new job.",
    "made_worse": "Lower the learning rate, or give it more lines. What it published on the way "
    "stays.",
    "diverged": "The loss is no number any more: lower the learning rate, or look for garbled "
    "answers in the file.",
    "out_of_memory": "Start a new job with a lower max_tokens_per_batch or rank.",
    "worker_lost": "Workers died of this job again and again: whoever runs the server should read "
    "the worker's log.",
    "training_failed": "A file or the adapter to continue from is gone or damaged: add it again.",
    "disk_full": "Whoever runs the server should make room on its disk. Then train again.",
    "disk_failed": "Whoever runs the server should look at its disk: the worker's log names the "
    "place.",
}
"""What to do about a failed job, by its error's code."""
_OTHER_REMEDY: Final = "Whoever runs the server should read the worker's log."


@dataclass(frozen=True)
class JobProgress:
    """A job with its last metrics.

    `steps` is how many there will be, as far as known. `share` is from 0 to 1. Times are seconds.
    """

    job: Job
    metrics: Mapping[str, Any]
    now: float

    @classmethod
    def of(cls, job: Job, metrics: Mapping[str, Any] | None) -> "JobProgress":
        return cls(job, metrics or _NO_METRICS, time.time())

    @property
    def name(self) -> str:
        """Of the adapter that it makes."""
        return self.job.suffix or self.job.id

    @property
    def step(self) -> int:
        return max(self.job.step, int(self.metrics.get("step") or 0))

    @property
    def steps(self) -> int | None:
        estimate = self.job.estimate
        known = self.metrics.get("total_steps") or (estimate and estimate.steps)
        return int(known) if known else None

    @property
    def share(self) -> float:
        return min(self.step / self.steps, 1.0) if self.steps else 0.0

    @property
    def loss(self) -> float | None:
        """The newest training loss."""
        return self.metrics.get("train_loss")

    @property
    def result_loss(self) -> float | None:
        """The held-out loss of what it made."""
        found = self.job.evaluation
        return None if found is None else found.adapter_loss

    @property
    def verdict(self) -> JobVerdict | None:
        found = self.job.evaluation
        return None if found is None else JobVerdict.of(found)

    @property
    def elapsed(self) -> float | None:
        """Since it was first started, pauses and waits too."""
        started = self.job.started_at
        return None if started is None else max((self.job.finished_at or self.now) - started, 0)

    @property
    def left(self) -> float | None:
        finish = self.job.estimated_finish
        running = self.job.status is JobStatus.RUNNING and not self.job.stop_request
        return max(finish - self.now, 0) if running and finish else None

    @property
    def unfinished(self) -> bool:
        return not self.job.status.ended

    @property
    def may_cancel(self) -> bool:
        return self.unfinished and not self.job.cancel_requested

    @property
    def may_pause(self) -> bool:
        waits = self.job.status is JobStatus.PAUSED or self.job.pause_requested
        return self.may_cancel and not waits

    @property
    def may_resume(self) -> bool:
        """As the queue has it: it is paused, or will be."""
        waits = self.job.status is JobStatus.PAUSED or self.job.pause_requested
        return self.may_cancel and waits

    @property
    def remedy(self) -> str:
        """What to do about its failure."""
        return REMEDIES.get(self.job.error.code, _OTHER_REMEDY) if self.job.error else ""

    @property
    def stage(self) -> str:
        """What it does now, in a sentence."""
        if self.job.cancel_requested and self.unfinished:
            return "Its worker was asked to stop, and does so after this step."
        if self.job.pause_requested and self.unfinished:
            return "Its worker was asked to save it, and does so after this step."
        return {
            JobStatus.QUEUED: "It waits for a worker.",
            JobStatus.PAUSED: "It is paused, and keeps its place until you resume it.",
            JobStatus.RUNNING: self._running_stage(),
            JobStatus.CANCELLED: "It was cancelled. Nothing was published at its end.",
        }.get(self.job.status, "")

    def _running_stage(self) -> str:
        if not self.metrics:
            return "The worker reads the file and measures the base model."
        if self.steps and self.step >= self.steps:
            return "All steps are done. The worker asks both models a few questions."
        return "It learns."
