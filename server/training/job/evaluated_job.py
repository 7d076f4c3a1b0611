"""The last phase of a job: its adapter answers some questions, and is published.

If the disk has no room for the adapter, publishing is tried again for a while.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import TrainingFailed
from server.jobs.queue.evaluation import Evaluation
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job.evaluate import refusal
from server.training.job.job_output import JobOutput, TrainedState
from server.training.job.job_phase import DISK_ERRORS, JobPhase, disk_reason
from server.training.job.training_setup import TrainingSetup
from server.training.run.greedy_answers import GreedyRequest

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


@dataclass(eq=False)
class EvaluatedJob(JobPhase):
    """A job that takes no more steps, whose adapter is to be published unless it is refused.

    The adapter is set to `state`. `last` are the metrics of the last step.
    """

    setup: TrainingSetup
    output: JobOutput
    state: TrainedState
    evaluation: Evaluation
    last: TrainingMetrics

    def __post_init__(self) -> None:
        self._retry = _DiskRetry(self.claim.services.disk_retry_s)

    def questions(self) -> list[GreedyRequest]:
        """What to ask before publishing: each question of the base, then each of the adapter."""
        if self.claim.job.samples is not None or self.evaluation.verdict == "diverged":
            return []
        adapters = (None, self.setup.adapter)
        return [
            GreedyRequest(question.prompt, adapter)
            for adapter in adapters
            for question in self.setup.questions
        ]

    def publish(self, answers: Sequence[Sequence[int]] | None) -> "EvaluatedJob | None":
        """Record the answers, and `deliver`.

        Args:
            answers: to `questions`, in order; None: they could not be generated.

        Raises:
            TrainingFailed: it diverged, or is worse than what the job started from.
        """
        if self.evaluation.verdict != "diverged":
            self.output.record_samples(answers)
        if failure := refusal(self.evaluation, self.setup):
            raise failure
        return self.deliver()

    def deliver(self) -> "EvaluatedJob | None":
        """Write the adapter and end the job: None. Where the disk is full, itself: call it again.

        Raises:
            TrainingFailed: there was no room for too long.
        """
        self.claim.heartbeat.check()
        if not self._retry.due:
            return self
        try:
            ref = self.output.publish(self.state)
        except DISK_ERRORS as error:
            self._put_off(error)
            return self
        self.claim.store_metrics()
        tokens = self.setup.trainer.trained_tokens
        self.claim.services.queue.finish(self.claim.job, str(ref), tokens)
        self.claim.remove_files()
        return None

    def failure_detail(self, code: str) -> str:
        """The best checkpoint that a refused adapter leaves."""
        if code not in ("diverged", "made_worse"):
            return ""
        return self.output.record_failure(self.evaluation, self.last)

    def _put_off(self, error: Exception) -> None:
        """There is no room for the adapter: try again later, unless that was so for too long."""
        seconds = f"{self._retry.seconds:.0f} s"
        if self._retry.over:
            raise TrainingFailed(
                f"the adapter could not be written for {seconds} ({disk_reason(error)}): make room "
                "on the server's disk, and train again",
                code="disk_full",
            ) from error
        if not self._retry.failed:
            consequence = f"The worker tries again for {seconds}."
            self.claim.warn_of_disk("The adapter could not be written", error, consequence)
        self._retry.note_failure()


class _DiskRetry:
    """When to try again to write. Counts from the first failure, by the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.failed = False
        self._pause = _FIRST_PAUSE_S
        self._give_up_at = 0.0
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to try, for the first time or again."""
        return time.monotonic() >= self._next

    @property
    def over(self) -> bool:
        """Whether it has failed for too long."""
        return self.failed and time.monotonic() >= self._give_up_at

    def note_failure(self) -> None:
        """The pauses between failures grow."""
        now = time.monotonic()
        if not self.failed:
            self.failed, self._give_up_at = True, now + self.seconds
        self._next, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE_S)
