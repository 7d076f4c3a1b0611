"""The phase of a job in which it takes steps: each is reported, and saved when it is time.

A full disk stops no run: checkpoints are left out until there is room.
"""

import logging
import math
import time
from dataclasses import dataclass, replace

from server.jobs.queue.evaluation import Evaluation
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job.evaluated_job import EvaluatedJob
from server.training.job.job_output import JobOutput, TrainedState
from server.training.job.job_phase import DISK_ERRORS, Claim, JobPhase
from server.training.job.run_report import sentence, updated
from server.training.job.training_setup import TrainingSetup
from server.training.run.checkpoint import RunCheckpoint
from server.training.run.trainer import Trainer

log = logging.getLogger(__name__)

_EVENT_EVERY_S = 0.25


class StepReporter:
    """Writes every step to the job's file of metrics, and some to its events.

    Args:
        last_reported: the last step that an earlier attempt reported.
    """

    def __init__(self, claim: Claim, last_reported: int) -> None:
        self._claim = claim
        self._last_reported = last_reported
        self._reported_at = -math.inf

    def report(self, metrics: TrainingMetrics, *, last: bool = False) -> None:
        """Note a step. Add an event if the step was scored, is the last, or after a while."""
        claim, job = self._claim, self._claim.job
        try:
            claim.folder.metrics.add(metrics)
        except OSError as error:  # no reason to stop training
            log.warning("job %s: step %d has no metrics: %s", job.id, metrics.step, error)
        claim.heartbeat.report(metrics)
        now, scored = time.monotonic(), metrics.valid_loss is not None
        due = scored or last or now - self._reported_at >= _EVENT_EVERY_S
        if due and metrics.step > self._last_reported:
            claim.services.queue.append_event(job, "info", sentence(metrics), metrics)
            self._reported_at = now


@dataclass(eq=False)
class RunningJob(JobPhase):
    """A job that takes steps.

    `baseline` has the losses of what it started from, and `metrics` are those of the last step.
    """

    setup: TrainingSetup
    output: JobOutput
    reporter: StepReporter
    baseline: Evaluation
    metrics: TrainingMetrics

    def __post_init__(self) -> None:
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._save_failed = False

    @property
    def trainer(self) -> Trainer:
        return self.setup.trainer

    @property
    def done(self) -> bool:
        """Whether the last step was taken, or no score was better for as long as the job allows."""
        limit = self.setup.plan.early_stopping
        stopped = limit is not None and (self.metrics.scores_since_best or 0) >= limit
        return self.trainer.done or stopped

    def take(self, result: TrainingMetrics | Exception) -> "RunningJob":
        """Report a step, and save it when it is time. Raises what the step failed of."""
        if isinstance(result, Exception):
            raise result
        self.claim.heartbeat.check()  # before anything is written
        self.metrics = updated(self.metrics, result)
        self.reporter.report(result, last=self.done)
        if self.metrics.best_step == result.step:
            self._save_best(result.step)
        if result.step in self.output.milestones:
            self.output.publish_checkpoint(result.step, self.metrics)
        self.save_if_due()
        self.claim.heartbeat.check()
        return self

    def finish(self) -> EvaluatedJob:
        """Evaluate the state to publish: the one that scored best, else the last."""
        state = self._best_state()
        evaluation = self.output.record_evaluation(self.baseline, state, self.metrics)
        return EvaluatedJob(self.claim, self.setup, self.output, state, evaluation, self.metrics)

    def save_if_due(self) -> None:
        """Save the last step, and any other once the last checkpoint is old."""
        age = time.monotonic() - self._saved_at
        if self.done or age >= self.claim.services.checkpoint_every_s:
            self.save()

    def save(self) -> None:
        """Save the run as it is. If the disk has no room, an earlier checkpoint must do."""
        if self.metrics.step != self.trainer.step:
            return  # a step was taken and not reported: the last checkpoint is older
        if self.metrics.step == self._saved_step:
            return  # `finish` may have set the adapter to an earlier state since
        checkpoint = self.trainer.checkpoint()
        # Under the name that earlier versions gave it, so that their checkpoints can be resumed.
        state = {**checkpoint.state, "figures": self.metrics.to_document()}
        self._saved_at, self._saved_step = time.monotonic(), self.metrics.step
        try:
            with self.claim.services.saving():
                self.claim.folder.metrics.sync()
                self.claim.folder.checkpoints.save(replace(checkpoint, state=state))
        except DISK_ERRORS as error:
            if not self._save_failed:  # once, until it works again
                failure = f"Step {self.trainer.step} could not be saved"
                consequence = "Training continues, and can be resumed from an earlier step only."
                self.claim.warn_of_disk(failure, error, consequence)
            self._save_failed = True
        else:
            self._save_failed = False

    def failure_detail(self, code: str) -> str:
        """The evaluation of a run that diverged."""
        if code != "diverged":
            return ""
        return self.output.record_failure(self.baseline, self.metrics)

    def _save_best(self, step: int) -> None:
        """Save the state to publish, unless a later score is better."""
        tensors = self.setup.adapter.tensors()
        best = RunCheckpoint(step, tensors, self.metrics.to_document())
        try:
            with self.claim.services.saving():
                self.claim.folder.best.save(best)
        except DISK_ERRORS as error:  # a later state may be saved
            job_id = self.claim.job.id
            log.warning("job %s: step %d scored best and was not saved: %s", job_id, step, error)

    def _best_state(self) -> TrainedState:
        """The state that was scored best, and the adapter is set to it; else the last."""
        adapter, last = self.setup.adapter, self.metrics
        best = self.claim.folder.best.newest()
        if best is not None:
            metrics = TrainingMetrics.from_document(best.state)
            if metrics.valid_loss_or_nan < last.valid_loss_or_nan:
                adapter.load_tensors(best.tensors)
                return TrainedState(best.step, best.tensors, metrics)
        return TrainedState(self.trainer.step, adapter.tensors(), last)
