"""One claimed job in a worker's hands, from its files to its published adapter. Knows no others.

What fails raises, and `end` says what that means for the job. Whatever a killed attempt had done is
found again by the next: its checkpoints, and by the job's id what it published. A disk that is full
stops no run: checkpoints are done without, and the result waits for room, for a while.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import cast

from server.adapters.memory.matrices import SharedBases
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import LeaseLost, TrainingFailed, Unavailable
from server.jobs.queue.evaluation import Evaluation
from server.jobs.queue.job import Figures, Job
from server.training.job.disk_retry import DISK_ERRORS, DiskRetry, disk_reason
from server.training.job.evaluate import loss_of, refusal
from server.training.job.heartbeat import Heartbeat, JobCancelled, JobPaused
from server.training.job.job_output import JobOutput, TrainedState
from server.training.job.job_services import JobServices
from server.training.job.run_report import figures_of, joined, reason_of, sentence
from server.training.job.start import start_of
from server.training.job.step_metrics import StepMetrics
from server.training.job.training_setup import TrainingSetup, prepare
from server.training.run.checkpoint import CheckpointFolder, RunCheckpoint
from server.training.run.greedy_answers import GreedyRequest
from server.training.run.trainer import Progress, Trainer

log = logging.getLogger(__name__)

_EVENT_EVERY_S = 0.25
_EVENTS_LOOKED_AT = 50  # from the newest; metrics are among them unless many attempts were lost


class Attempt:
    """Beats for its job from the moment it is made until `close`."""

    def __init__(self, services: JobServices, job: Job) -> None:
        self.job = job
        self._services = services
        self._folder = CheckpointFolder(services.folder / job.id)
        self._best = CheckpointFolder(services.folder / job.id / "best", keep=1)
        self._results = StepMetrics(services.folder / job.id / "results.csv")
        self._lock = services.folder / f"{job.id}.lock"
        self._setup: TrainingSetup | None = None
        self._figures: Figures = {}
        self._evaluation: Evaluation | None = None
        self._learnt: TrainedState | None = None
        self._told_before = -1
        self._unsaved = False
        self._patience = DiskRetry(services.disk_retry_s)
        self.published = False
        self._saved = self._told = time.monotonic()
        self._heart = Heartbeat(services.queue, job, services.lease_s)
        self._heart.__enter__()

    @property
    def trainer(self) -> Trainer:
        return self._prepared.trainer

    @property
    def done(self) -> bool:
        """Whether the last step was taken, or none is worth taking."""
        return self.trainer.done or self._stale()

    def prepare(self, base: BaseModel, tokenizer: ChatTokenizer, shared: SharedBases) -> None:
        """Read the files, and go on from the last checkpoint if there is one.

        Raises:
            InvalidRequest, InvalidDataset, TrainingFailed: the job cannot be trained.
            AdapterNotFound, AdapterCorrupt: what it goes on from is gone, or damaged.
            LeaseLost, JobCancelled, JobPaused: it is not to be, or not now.
        """
        services, job = self._services, self.job
        self._heart.check()
        self._setup = prepare(
            job,
            services.files,
            base,
            tokenizer,
            max_rank=services.max_rank,
            shared=shared,
            start=start_of(job, services.store, services.served_name),
        )
        self._figures = self._resume()
        self._told_before = self._last_step_told() if self.trainer.step else -1
        if self.trainer.step in self._outcome.milestones:  # saved, perhaps before it was
            self._outcome.publish_checkpoint(self.trainer.step, self._figures)
        first = self.trainer.start()
        if first is not None:
            self.take(first)
        self._evaluation = self._outcome.begin(first)
        if self._evaluation.held_out:
            self._figures = {**self._figures, "base_valid_loss": self._evaluation.base_loss}

    def take(self, result: Progress | Exception) -> None:
        """Note a step: tell of it, and save it when it is time. Raises what the step failed of."""
        if isinstance(result, Exception):
            raise result
        self._figures = joined(self._figures, result)
        self._note(result)
        self._heart.tell(result.step, result.trained_tokens, result.seconds_left)
        now = time.monotonic()
        last = self.done
        due = result.valid or last or now - self._told >= _EVENT_EVERY_S
        if due and result.step > self._told_before:
            self._tell(sentence(result), figures_of(result))
            self._told = now
        if self._figures.get("best_step") == result.step:
            self._keep_best(result.step)
        if result.step in self._outcome.milestones:
            self._outcome.publish_checkpoint(result.step, self._figures)
        if last or now - self._saved >= self._services.checkpoint_every_s:
            self._save()
        self._heart.check()

    def judge(self) -> None:
        """Take the best state that was scored, and hold it against what the job came from."""
        self._learnt = self._best_state()
        self._evaluation = self._outcome.judge(self._judged, self._learnt, self._figures)

    def questions(self) -> list[GreedyRequest]:
        """What to ask before publishing, of the base and then of the adapter; `judge` is first."""
        if self.job.samples is not None or self._judged.verdict == "diverged":
            return []
        adapters = (None, self._prepared.adapter)
        return [
            GreedyRequest(one.prompt, who) for who in adapters for one in self._prepared.questions
        ]

    def publish(self, answers: Sequence[Sequence[int]] | None, tokenizer: ChatTokenizer) -> None:
        """Publish the adapter and end the job well, see `deliver`; `judge` is first.

        Args:
            answers: to `questions`, in order; None: they could not be asked.

        Raises:
            TrainingFailed: it diverged, or is worse than what it came from.
        """
        if self._judged.verdict != "diverged":
            self._outcome.answered(answers, tokenizer)
        if failure := refusal(self._judged, self._prepared):
            raise failure
        self.deliver()

    def deliver(self) -> None:
        """Write the adapter and end the job; if the disk has no room, later: until `published`.

        Raises:
            TrainingFailed: there was no room for too long.
        """
        assert self._learnt is not None, "an attempt is judged first"
        self._heart.check()
        if not self._patience.due:
            return
        try:
            ref = self._outcome.publish(self._learnt)
        except DISK_ERRORS as error:
            self._put_off(error)
            return
        self._outcome.keep_results(self._results.table())
        self._services.queue.finish(self.job, str(ref), self.trainer.trained_tokens)
        self.published = True
        self._leave_nothing()

    def give_back(self) -> None:
        """Save the job and return it to the queue, or leave it where its owner wants it."""
        self._save()
        self._services.queue.release(self.job)

    def end(self, error: Exception) -> None:
        """Say what a failure means for the job, which is no longer in our hands afterwards."""
        try:
            self._end(error)
        except LeaseLost as lost:
            log.warning("%s", lost)
        except Unavailable as reason:  # the lease runs out, and the job is claimed again
            log.warning("job %s is left as it is: %s", self.job.id, reason)
        except Exception:  # the same, and no other job is touched
            log.exception("job %s is left as it is", self.job.id)

    def close(self) -> None:
        """Stop beating."""
        self._heart.__exit__(None, None, None)

    def _end(self, error: Exception) -> None:
        if isinstance(error, Unavailable | JobPaused):
            self._save()
        if isinstance(error, LeaseLost | Unavailable):
            raise error
        if isinstance(error, JobPaused):
            self._services.queue.park(self.job)
            return
        if isinstance(error, JobCancelled):
            self._services.queue.stop(self.job)
        else:
            code, message, param = reason_of(error)
            fault = error if code == "internal_error" else None
            log.warning("job %s failed: %s", self.job.id, message, exc_info=fault)
            if self._setup is not None and self.trainer.step:
                self._outcome.keep_results(self._results.table())
            if code in ("diverged", "made_worse") and self._evaluation is not None:
                message += self._outcome.failed(self._evaluation, self._figures)
            self._services.queue.fail(self.job, code, message, param)
        self._leave_nothing()

    @cached_property
    def _outcome(self) -> JobOutput:
        return JobOutput(self._services, self._prepared, self._lock, self._heart.beat)

    @property
    def _judged(self) -> Evaluation:
        assert self._evaluation is not None, "an attempt is prepared first"
        return self._evaluation

    @property
    def _prepared(self) -> TrainingSetup:
        assert self._setup is not None, "an attempt is prepared first"
        return self._setup

    def _save(self) -> None:
        """Save the run as it stands; if the disk has no room, an earlier checkpoint must do."""
        if self._setup is None or self._figures.get("step") != self.trainer.step:
            return  # nothing was done since it was read
        if self._learnt is not None:
            return  # the adapter may be set to an earlier state; the last was saved
        checkpoint = self.trainer.checkpoint()
        state = {**checkpoint.state, "figures": self._figures}
        self._saved = time.monotonic()
        try:
            self._results.sync()
            self._folder.save(replace(checkpoint, state=state))
        except DISK_ERRORS as error:
            if not self._unsaved:  # told once, until it works again
                told = "training goes on, and could be taken up again at an earlier step only"
                self._warn(f"Step {self.trainer.step} could not be saved", error, told)
            self._unsaved = True
        else:
            self._unsaved = False

    def _put_off(self, error: Exception) -> None:
        """There is no room for the adapter: try again later, unless that was so for too long."""
        seconds = f"{self._patience.seconds:.0f} s"
        if self._patience.over:
            raise TrainingFailed(
                f"the adapter could not be written for {seconds} ({disk_reason(error)}): "
                "make room on the server's disk, and train again",
                code="disk_full",
            ) from error
        if not self._patience.tried:
            told = f"it is tried again for {seconds}"
            self._warn("The adapter could not be written", error, told)
        self._patience.refused()

    def _warn(self, what: str, error: Exception, then: str) -> None:
        log.warning("job %s: %s: %s", self.job.id, what, error)
        self._services.queue.append_event(
            self.job, "warn", f"{what} ({disk_reason(error)}): {then}"
        )

    def _tell(self, message: str, figures: Figures) -> None:
        self._services.queue.append_event(self.job, "info", message, "metrics", figures)

    def _last_step_told(self) -> int:
        """What an earlier attempt told of before it was lost is not told again."""
        job, queue = self.job, self._services.queue
        events = queue.events(job.owner, job.id, limit=_EVENTS_LOOKED_AT).items
        steps = (event.data["step"] for event in events if event.type == "metrics" and event.data)
        return max((int(str(step)) for step in steps), default=-1)

    def _resume(self) -> Figures:
        trainer, queue = self.trainer, self._services.queue
        checkpoint = self._folder.newest()
        if checkpoint is None:
            queue.append_event(self.job, "info", self._prepared.summary())
            self._results.clear()
            return {}
        if not trainer.fits(checkpoint):
            told = "The checkpoint is of other data or options: starting from the top"
            queue.append_event(self.job, "warn", told)
            self._clear()
            return {}
        trainer.restore(checkpoint)
        with suppress(OSError):  # a run that comes by the same steps again notes them again
            self._results.cut(trainer.step)
        told = f"Going on from step {trainer.step} of {trainer.total_steps}"
        queue.append_event(self.job, "info", told)
        figures = checkpoint.state["figures"]
        assert isinstance(figures, Mapping)
        return figures

    def _stale(self) -> bool:
        """Whether the scores have not become better for as long as the job allows."""
        patience = self._prepared.plan.early_stopping
        return patience is not None and int(self._figures.get("scores_since_best") or 0) >= patience

    def _keep_best(self, step: int) -> None:
        """What is published, unless a later score is better."""
        best = RunCheckpoint(step, self._prepared.adapter.tensors(), self._figures)
        try:
            self._best.save(best)
        except DISK_ERRORS as error:  # a later state may do
            log.warning("job %s: the best state, step %d, is lost: %s", self.job.id, step, error)

    def _best_state(self) -> TrainedState:
        """The last state, or the one that scored best if that is another; the adapter is set to
        it."""
        adapter, figures = self._prepared.adapter, self._figures
        best = self._best.newest()
        state = cast(Figures, best.state) if best else {}
        if best is None or not loss_of(state) < loss_of(figures):
            return TrainedState(self.trainer.step, adapter.tensors(), figures)
        adapter.load_tensors(best.tensors)
        return TrainedState(best.step, best.tensors, state)

    def _note(self, result: Progress) -> None:
        try:
            self._results.add(figures_of(result))
        except OSError as error:  # no reason to stop learning
            log.warning("job %s: step %d has no figures: %s", self.job.id, result.step, error)

    def _leave_nothing(self) -> None:
        """After the job's end: who waits for the lock then learns that there is no more to do."""
        try:
            self._clear()
            self._lock.unlink(missing_ok=True)
        except OSError as error:  # a later worker sweeps
            log.warning("job %s leaves files behind: %s", self.job.id, error)

    def _clear(self) -> None:
        self._best.clear()
        self._results.clear()
        self._folder.clear()
