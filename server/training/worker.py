"""The worker: claim a job, train it, publish the adapter, finish. Knows no HTTP.

A worker may be killed at any moment. What it had claimed is claimed again once its lease runs out,
and goes on from the last checkpoint; a publish is found again by the job's id and not repeated.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import InvalidRequest, LeaseLost, Unavailable
from server.jobs.files import Files
from server.jobs.job import Figures
from server.jobs.queue import Job, JobQueue
from server.training.checkpoint import CheckpointFolder, sweep
from server.training.heartbeat import Heartbeat, JobCancelled
from server.training.lesson import Lesson, prepare
from server.training.publish import publish_once
from server.training.report import (
    advice,
    checkpoint_metrics,
    comparison,
    figures_of,
    joined,
    reason_of,
    sentence,
)

log = logging.getLogger(__name__)

_EVENT_EVERY_S = 0.25
_EVENTS_LOOKED_AT = 50  # from the newest; metrics are among them unless many attempts were lost
_LEFTOVER_AGE_S = 7 * 24 * 3600

Load = Callable[[], tuple[BaseModel, ChatTokenizer]]


class _Stopped(Exception):
    """The worker is to end; the job goes back to the queue."""


@dataclass(frozen=True)
class WorkerParts:
    """What a worker works with.

    `load` makes the base model, called at the first job; `served_name` is the id under which users
    ask for it. `folder` holds one folder of checkpoints per job. `max_rank` is the largest that the
    server serves. A job whose worker has not been heard of for `lease_s` seconds is another's.
    """

    queue: JobQueue
    files: Files
    store: AdapterStore
    load: Load
    served_name: str
    folder: Path
    worker_id: str
    max_rank: int = 1024
    lease_s: float = 30
    poll_s: float = 0.5
    checkpoint_every_s: float = 20


def run_worker(parts: WorkerParts, stop: threading.Event) -> None:
    """Work through the queue until `stop` is set; then give back what is in hand, and return."""
    sweep(parts.folder, older_than_s=_LEFTOVER_AGE_S)
    worker = _Worker(parts, stop)
    while not stop.is_set():
        try:
            job = parts.queue.claim(parts.worker_id, parts.lease_s)
        except Unavailable as error:
            log.warning("the queue cannot be reached: %s", error)
            job = None
        if job is None:
            stop.wait(parts.poll_s)
        else:
            worker.attempt(job)


class _Worker:
    """Keeps the base model from job to job."""

    def __init__(self, parts: WorkerParts, stop: threading.Event) -> None:
        self._parts = parts
        self._stop = stop
        self._loaded: tuple[BaseModel, ChatTokenizer] | None = None

    def attempt(self, job: Job) -> None:
        """Work on one job until it ends one way or another.

        Raises nothing of the job's; what the base model raises when it cannot be loaded, after
        giving the job back.
        """
        log.info("job %s, attempt %d", job.id, job.attempt)
        try:
            with Heartbeat(self._parts.queue, job, self._parts.lease_s) as heart:
                self._load_or_give_back(job)
                self._learn_or_say_why(job, heart)
        except LeaseLost as error:
            log.warning("%s", error)
        except Unavailable as error:  # the lease runs out, and the job is claimed again
            log.warning("job %s is left as it is: %s", job.id, error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the server may be on the same device

    def _load_or_give_back(self, job: Job) -> None:
        if self._loaded is not None:
            return
        try:
            self._loaded = self._parts.load()
        except Exception as error:
            told = f"The base model cannot be loaded: {error}"
            self._parts.queue.append_event(job, "error", told)
            self._parts.queue.release(job)
            raise

    def _learn_or_say_why(self, job: Job, heart: Heartbeat) -> None:
        queue = self._parts.queue
        try:
            self._learn(job, heart)
        except (LeaseLost, Unavailable):
            raise
        except _Stopped:
            queue.release(job)
        except JobCancelled:
            queue.stop(job)
            self._checkpoints(job).clear()
        except Exception as error:
            code, message, param = reason_of(error)
            log.warning("job %s failed: %s", job.id, message, exc_info=code == "internal_error")
            queue.fail(job, code, message, param)
            self._checkpoints(job).clear()

    def _learn(self, job: Job, heart: Heartbeat) -> None:
        parts = self._parts
        if job.model != parts.served_name:
            raise InvalidRequest(
                f"model {job.model!r} cannot be trained: this worker trains adapters of "
                f"{parts.served_name!r} only, and does not go on from an existing adapter",
                param="model",
            )
        assert self._loaded is not None
        heart.check()
        lesson = prepare(job, parts.files, *self._loaded, max_rank=parts.max_rank)
        figures = self._train(job, lesson, heart)
        ref = publish_once(
            parts.store,
            job.owner,
            job.suffix or f"ft-{job.id[-8:]}",
            lesson.manifest(figures),
            lesson.adapter.tensors(),
            lock=parts.folder / f"{job.id}.lock",
            check_lease=heart.beat,
        )
        self._finish(job, lesson, ref, figures)

    def _train(self, job: Job, lesson: Lesson, heart: Heartbeat) -> Figures:
        """Train to the end from the last checkpoint, if there is one. Returns the last figures."""
        parts, trainer = self._parts, lesson.trainer
        folder = self._checkpoints(job)
        figures = self._resume(job, lesson, folder)
        told_before = self._last_step_told(job) if trainer.step else -1
        saved = told = time.monotonic()
        for progress in trainer.run():
            figures = joined(figures, progress)
            heart.tell(progress.step, progress.trained_tokens, progress.seconds_left)
            now = time.monotonic()
            last = progress.step == progress.total_steps
            due = progress.valid or last or now - told >= _EVENT_EVERY_S
            if due and progress.step > told_before:
                parts.queue.append_event(
                    job, "info", sentence(progress), "metrics", figures_of(progress)
                )
                told = now
            if last or self._stop.is_set() or now - saved >= parts.checkpoint_every_s:
                checkpoint = trainer.checkpoint()
                folder.save(replace(checkpoint, state={**checkpoint.state, "figures": figures}))
                saved = time.monotonic()
            heart.check()
            if self._stop.is_set():
                raise _Stopped
        return figures

    def _last_step_told(self, job: Job) -> int:
        """What an earlier attempt told of before it was lost is not told again."""
        events = self._parts.queue.events(job.owner, job.id, limit=_EVENTS_LOOKED_AT).items
        steps = (event.data["step"] for event in events if event.type == "metrics" and event.data)
        return max((int(str(step)) for step in steps), default=-1)

    def _resume(self, job: Job, lesson: Lesson, folder: CheckpointFolder) -> Figures:
        trainer, tell = lesson.trainer, self._parts.queue.append_event
        checkpoint = folder.newest()
        if checkpoint is None:
            tell(job, "info", lesson.summary())
            return {}
        if not trainer.fits(checkpoint):
            tell(job, "warn", "The checkpoint is of other data or options: starting from the top")
            folder.clear()
            return {}
        trainer.restore(checkpoint)
        tell(job, "info", f"Going on from step {trainer.step} of {trainer.total_steps}")
        figures = checkpoint.state["figures"]
        assert isinstance(figures, Mapping)
        return figures

    def _finish(self, job: Job, lesson: Lesson, ref: AdapterRef, figures: Figures) -> None:
        queue = self._parts.queue
        # An earlier attempt may have come this far before it was killed.
        if not queue.checkpoints(job.owner, job.id, limit=1).items:
            queue.add_checkpoint(job, lesson.trainer.step, str(ref), checkpoint_metrics(figures))
            if "base_valid_loss" in figures:
                queue.append_event(job, "info", comparison(figures))
            if hint := advice(figures):
                queue.append_event(job, "warn", hint)
        queue.finish(job, str(ref), lesson.trainer.trained_tokens)
        self._checkpoints(job).clear()
        (self._parts.folder / f"{job.id}.lock").unlink(missing_ok=True)

    def _checkpoints(self, job: Job) -> CheckpointFolder:
        return CheckpointFolder(self._parts.folder / job.id)
