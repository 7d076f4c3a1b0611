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
from server.training.job.job_phase import (
    DISK_ERRORS,
    JobPhase,
    disk_is_full,
    disk_reason,
    disk_remedy,
)
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
        self._retry_at, self._pause_s = 0.0, _FIRST_PAUSE_S
        self._give_up_at: float | None = None

    def questions(self) -> list[GreedyRequest]:
        """What to ask before publishing: each question of the base, then each of the adapter."""
        if self.claim.job.samples is not None or self.evaluation.verdict == "diverged":
            return []
        adapters = (None, self.setup.adapter)
        return [
            GreedyRequest(question.prompt, adapter, question.ends)
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
        if time.monotonic() < self._retry_at:
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
        """There is no space for the adapter: try again later, unless that was so for too long."""
        now, retry_s = time.monotonic(), self.claim.services.disk_retry_s
        if self._give_up_at is None:
            self._give_up_at = now + retry_s
            consequence = f"The worker tries again for {retry_s:.0f} s."
            self.claim.warn_of_disk("The adapter could not be written", error, consequence)
        elif now >= self._give_up_at:
            raise TrainingFailed(
                f"the adapter could not be written for {retry_s:.0f} s ({disk_reason(error)}): "
                f"{disk_remedy(error)}, and train again",
                code="disk_full" if disk_is_full(error) else "disk_failed",
            ) from error
        self._retry_at, self._pause_s = (
            now + self._pause_s,
            min(2 * self._pause_s, _LONGEST_PAUSE_S),
        )
