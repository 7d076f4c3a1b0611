"""What a job leaves: versions of its adapter, how good they are, and answers as samples.

All of it is recorded once: each attempt looks for what an earlier one left.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import StoreError
from server.jobs.queue.evaluation import Evaluation
from server.jobs.queue.job import Checkpoint, Level
from server.jobs.queue.quotas import adapter_name
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job import evaluate
from server.training.job.job_phase import Claim
from server.training.job.publish import milestones, publish_once
from server.training.job.run_report import overfitting
from server.training.job.samples import sample_of
from server.training.job.training_setup import TrainingSetup

log = logging.getLogger(__name__)

_CHECKPOINTS = 11  # a job has no more


@dataclass(frozen=True, eq=False)
class TrainedState:
    """A state of the run: its vectors as the store holds them, and its metrics."""

    step: int
    tensors: Mapping[str, Tensor]
    metrics: TrainingMetrics


class JobOutput:
    """Records what one job gives. Publishing raises once the job is another's, or is to stop.

    Attributes:
        milestones: the steps at which a checkpoint is published.
    """

    def __init__(self, claim: Claim, setup: TrainingSetup) -> None:
        self._claim = claim
        self._queue = claim.services.queue
        self._job = claim.job
        self._setup = setup
        steps, every = setup.trainer.total_steps, setup.trainer.evaluate_every
        self.milestones = milestones(steps, every, setup.plan.checkpoints)

    def record_baseline(self, first: TrainingMetrics | None) -> Evaluation:
        """Score what the job starts from, unless an earlier attempt did."""
        if self._job.evaluation is not None and first is None:
            return self._job.evaluation
        baseline = evaluate.baseline(self._setup, first)
        level: Level = "info" if baseline.held_out else "warn"
        message = evaluate.announcement(baseline, self._setup)
        self._queue.record_evaluation(self._job, baseline, level, message)
        return baseline

    def record_evaluation(
        self, baseline: Evaluation, state: TrainedState, last: TrainingMetrics
    ) -> Evaluation:
        """Compare the adapter, which is set to `state`, with what the job started from."""
        evaluation = evaluate.evaluated(baseline, self._setup, state.step, state.metrics, last)
        message, hint = evaluate.comparison(evaluation, self._setup), overfitting(last)
        level: Level = "info" if evaluation.verdict == "better" and not hint else "warn"
        message = f"{message}. {hint}" if hint else message
        self._queue.record_evaluation(self._job, evaluation, level, message)
        return evaluation

    def record_samples(self, answers: Sequence[Sequence[int]] | None) -> None:
        """Record how the setup's questions were answered.

        Args:
            answers: as tokens; first the base's, then the adapter's. None: they could not be
                generated.
        """
        failure, tokenizer = "", self._setup.tokenizer
        if answers is None:
            failure = "No sample answers: they could not be generated. The worker's log says why"
        elif not self._setup.questions:
            failure = "No sample answers: every question of the file is too long for them"
        answers = answers or ()
        questions = self._setup.questions[: len(answers) // 2]
        rows = zip(questions, answers[: len(questions)], answers[len(questions) :], strict=True)
        samples = [sample_of(*row, tokenizer) for row in rows]
        self._queue.add_samples(self._job, samples, failure)

    def record_failure(self, evaluation: Evaluation, last: TrainingMetrics) -> str:
        """Record the evaluation of a run that failed. Return what the job's error must say of it,
        and of the best checkpoint that the job leaves."""
        detail = ""
        if evaluation.verdict is None:  # it failed before it was finished
            evaluation = evaluate.diverged_evaluation(evaluation, last)
            comparison = evaluate.comparison(evaluation, self._setup)
            self._queue.record_evaluation(self._job, evaluation, "warn", comparison)
            detail = f". {comparison}"
        published = self._queue.checkpoints(self._job.owner, self._job.id, limit=_CHECKPOINTS)
        return detail + evaluate.best_checkpoint(published.items)

    def publish(self, state: TrainedState) -> AdapterRef:
        ref = self._publish(state.tensors, state.metrics)
        self._record(ref, state.step, state.metrics)
        return ref

    def publish_checkpoint(self, step: int, metrics: TrainingMetrics) -> None:
        """Publish the adapter as it is now, apart from what will be the result."""
        try:
            ref = self._publish(self._setup.adapter.tensors(), metrics, step)
        except (StoreError, OSError) as error:  # the result may still be published
            log.warning("job %s: no checkpoint at step %d: %s", self._job.id, step, error)
            self._claim.add_event(
                "warn",
                f"The checkpoint of step {step} could not be published: the server could not write "
                "it. Training continues",
            )
            return
        if self._record(ref, step, metrics) is not None:
            self._claim.add_event("info", f"Checkpoint created at step {step}: {ref}")

    def _record(self, ref: AdapterRef, step: int, metrics: TrainingMetrics) -> Checkpoint | None:
        return self._queue.add_checkpoint(self._job, step, str(ref), metrics.at_checkpoint())

    def _publish(
        self, tensors: Mapping[str, Tensor], metrics: TrainingMetrics, step: int | None = None
    ) -> AdapterRef:
        job = self._job
        with self._claim.services.saving():
            return publish_once(
                self._claim.services.store,
                job.owner,
                adapter_name(job.suffix, job.id),
                self._setup.manifest(metrics, step),
                tensors,
                lock=self._claim.folder.lock,
                check_lease=self._claim.heartbeat.beat,
            )
