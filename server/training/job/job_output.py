"""What a job leaves behind: versions of its adapter, how good they are, and its figures.

Everything is done once, however many attempts there are: each looks for what an earlier one left.
"""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import StoreError
from server.bases.tokenizer import ChatTokenizer
from server.errors import RequestTooLarge
from server.jobs.files.file_store import RESULTS
from server.jobs.queue.evaluation import Evaluation
from server.jobs.queue.job import Figures, Level
from server.training.job import evaluate
from server.training.job.job_services import JobServices
from server.training.job.publish import milestones, publish_once
from server.training.job.run_report import checkpoint_metrics, overfitting
from server.training.job.samples import sample_of
from server.training.job.training_setup import TrainingSetup
from server.training.run.trainer import Progress

log = logging.getLogger(__name__)

_CHECKPOINTS = 11  # a job has no more


@dataclass(frozen=True, eq=False)
class TrainedState:
    """A state of the run: its vectors as the store holds them, and its figures."""

    step: int
    tensors: Mapping[str, Tensor]
    figures: Figures


class JobOutput:
    """Of one setup. `check_lease` raises once the job is another's, or is to stop."""

    def __init__(
        self,
        services: JobServices,
        setup: TrainingSetup,
        lock: Path,
        check_lease: Callable[[], None],
    ) -> None:
        self._services = services
        self._setup = setup
        self._lock = lock
        self._check_lease = check_lease
        trainer = setup.trainer
        self.milestones = milestones(
            trainer.total_steps, trainer.evaluate_every, setup.plan.checkpoints
        )
        """The steps at which a checkpoint is published."""

    def begin(self, first: Progress | None) -> Evaluation:
        """Score what the job comes from, and tell what is to be beaten; see `losses_to_beat`."""
        known = self._setup.job.evaluation  # by an earlier attempt
        if known is not None and first is None:
            return known
        before = evaluate.baseline(self._setup, first)
        level: Level = "info" if before.held_out else "warn"
        told = evaluate.announcement(before, self._setup)
        self._services.queue.record_evaluation(self._setup.job, before, level, told)
        return before

    def judge(self, before: Evaluation, learnt: TrainedState, last: Figures) -> Evaluation:
        """Hold the adapter, as it is now, against what it came from, and tell."""
        found = evaluate.evaluated(before, self._setup, learnt.step, learnt.figures, last)
        told, hint = evaluate.comparison(found, self._setup), overfitting(last)
        level: Level = "info" if found.verdict == "better" and not hint else "warn"
        told = f"{told}. {hint}" if hint else told
        self._services.queue.record_evaluation(self._setup.job, found, level, told)
        return found

    def answered(self, answers: Sequence[Sequence[int]] | None, tokenizer: ChatTokenizer) -> None:
        """Keep how the setup's questions were answered: as tokens, by the base and then by the
        adapter. None: they could not be asked."""
        queue, setup = self._services.queue, self._setup
        failure = ""
        if answers is None:
            failure = "No sample answers: asking the base and the adapter failed; see the log"
        elif not setup.questions:
            failure = "No sample answers: no line's question is short enough to be asked"
        found = answers or ()
        asked = setup.questions[: len(found) // 2]
        samples = [
            sample_of(question, base, adapter, tokenizer)
            for question, base, adapter in zip(
                asked, found[: len(asked)], found[len(asked) :], strict=True
            )
        ]
        queue.add_samples(setup.job, samples, failure)

    def publish(self, learnt: TrainedState) -> AdapterRef:
        """Publish the result."""
        ref = self._publish(learnt.tensors, learnt.figures)
        self._record(ref, learnt.step, learnt.figures)
        return ref

    def failed(self, evaluation: Evaluation, last: Figures) -> str:
        """Keep the evaluation on a run that failed; returns what its message has to say of that,
        and of the best checkpoint that it leaves."""
        queue, setup, told = self._services.queue, self._setup, ""
        if evaluation.verdict is None:  # it failed on its way
            found = evaluate.diverged_evaluation(evaluation, last)
            told = evaluate.comparison(found, setup)
            queue.record_evaluation(setup.job, found, "warn", told)
            told = f". {told}"
        kept = queue.checkpoints(setup.job.owner, setup.job.id, limit=_CHECKPOINTS)
        return told + evaluate.best_checkpoint(kept.items)

    def publish_checkpoint(self, step: int, figures: Figures) -> None:
        """Publish the adapter as it is now, beside what will be the result."""
        queue, job = self._services.queue, self._setup.job
        try:
            ref = self._publish(self._setup.adapter.tensors(), figures, step)
        except (StoreError, OSError) as error:  # the result may still be published
            log.warning("job %s: no checkpoint at step %d: %s", job.id, step, error)
            told = f"The checkpoint of step {step} could not be published: the store failed"
            queue.append_event(job, "warn", told)
            return
        if self._record(ref, step, figures):
            queue.append_event(job, "info", f"Checkpoint created at step {step}: {ref}")

    def keep_results(self, table: bytes) -> None:
        """Make the job's figures a file of its owner's."""
        files, queue, job = self._services.files, self._services.queue, self._setup.job
        name = f"step_metrics-{job.id}.csv"
        try:
            kept = files.named(job.owner, name, RESULTS)
            if kept is None:
                kept = files.create(job.owner, name, RESULTS, io.BytesIO(table))
        except (OSError, RequestTooLarge) as error:  # the adapter is published all the same
            log.warning("job %s has no results: %s", job.id, error)
            told = "The file of figures could not be written; the events have most of them"
            queue.append_event(job, "warn", told)
            return
        queue.add_results(job, kept.id)

    def _record(self, ref: AdapterRef, step: int, figures: Figures) -> bool:
        """List a version among the job's checkpoints; False if it is there already."""
        queue, job = self._services.queue, self._setup.job
        newest = queue.checkpoints(job.owner, job.id, limit=1).items
        if newest and newest[0].model == str(ref):
            return False
        queue.add_checkpoint(job, step, str(ref), checkpoint_metrics(figures))
        return True

    def _publish(
        self, tensors: Mapping[str, Tensor], figures: Figures, step: int | None = None
    ) -> AdapterRef:
        job = self._setup.job
        return publish_once(
            self._services.store,
            job.owner,
            job.suffix or f"ft-{job.id[-8:]}",
            self._setup.manifest(figures, step),
            tensors,
            lock=self._lock,
            check_lease=self._check_lease,
        )
