"""The worker: claim jobs, train them side by side, publish what they learnt. Knows no HTTP.

Jobs on one base are trained in one batch: a waiting one joins between two steps, a finished one
leaves. A worker may be killed at any moment. What it had claimed is claimed again once its leases
run out, and goes on from the last checkpoints.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from server.adapters.memory.matrices import SharedBases
from server.bases.device_health import works_still
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import Unavailable
from server.jobs.queue.job import Job
from server.training.job.attempt import Attempt
from server.training.job.job_services import JobServices
from server.training.job.samples import MAX_NEW
from server.training.run.checkpoint import sweep
from server.training.run.greedy_answers import answer_all
from server.training.run.run_steps import take_step

log = logging.getLogger(__name__)

STEP_TOKENS: Final = {"cpu": 4096, "cuda": 8192}
"""Positions of a forward pass of several jobs, by device; see decision 11."""
_LEFTOVER_AGE_S = 3600  # of jobs that have ended; a worker that was fenced may still write to them

Load = Callable[[], tuple[BaseModel, ChatTokenizer]]


@dataclass(frozen=True)
class WorkerParts:
    """What a worker works with.

    `load` makes the base model, called at the first job. At most `jobs` are trained at once, and
    a forward pass of theirs takes `step_tokens` positions (0: what suits the device), unless one
    job's own limit is higher.
    `tidy` is called whenever a job has left, and its memory with it.
    """

    services: JobServices
    load: Load
    worker_id: str
    poll_s: float = 0.5
    jobs: int = 8
    step_tokens: int = 0
    tidy: Callable[[], None] = lambda: None


class DeviceLost(Exception):
    """An accelerator has failed for good, as far as this process goes."""


def run_worker(parts: WorkerParts, stop: threading.Event) -> None:
    """Work through the queue until `stop` is set; then give back what is in hand, and return.

    Raises:
        DeviceLost: nothing can be done here any more. Jobs stay as they are: their leases end.
    """
    sweep(parts.services.folder, older_than_s=_LEFTOVER_AGE_S, keep=_unfinished(parts))
    worker = _Worker(parts, stop)
    try:
        while not stop.is_set():
            worker.take_in()
            if not worker.step():
                stop.wait(parts.poll_s)
    except DeviceLost:  # which of its jobs did it is not known: each counts a lost worker
        raise
    except BaseException:
        worker.give_back()
        raise
    worker.give_back()


def _unfinished(parts: WorkerParts) -> set[str]:
    """Jobs whose checkpoints are still wanted: a paused one may wait for long."""
    try:
        return parts.services.queue.unfinished()
    except Unavailable as error:
        log.warning("the queue cannot be reached: %s", error)
        return {entry.name for entry in parts.services.folder.glob("*")}


class _Worker:
    """Keeps the base model from job to job."""

    def __init__(self, parts: WorkerParts, stop: threading.Event) -> None:
        self._parts = parts
        self._stop = stop
        self._loaded: tuple[BaseModel, ChatTokenizer, SharedBases] | None = None
        self._attempts: list[Attempt] = []
        self._next_look = 0.0

    def take_in(self) -> None:
        """Claim waiting jobs while there is room; between steps, no oftener than the poll.

        Raises what the base model raises when it cannot be loaded, after giving the job back.
        """
        if time.monotonic() < self._next_look:
            return
        while len(self._attempts) < self._parts.jobs and not self._stop.is_set():
            job = self._claim()
            if job is None:
                break
            log.info("job %s, attempt %d", job.id, job.attempt)
            attempt = Attempt(self._parts.services, job)
            self._attempts.append(attempt)
            prepare = partial(attempt.prepare, *self._load_for(attempt))
            if self._settle(attempt, prepare) and attempt.done:
                self._finish([attempt])
        self._next_look = time.monotonic() + self._parts.poll_s

    def step(self) -> bool:
        """One optimizer step of every job in hand; False if there is none to take.

        What is done and still in hand waits for room on the disk.
        """
        for attempt in [attempt for attempt in self._attempts if attempt.done]:
            self._deliver(attempt, attempt.deliver)
        attempts = [attempt for attempt in self._attempts if not attempt.done]
        if not attempts:
            return False
        trainers = [attempt.trainer for attempt in attempts]
        most = max(trainer.part_tokens for trainer in trainers)
        tokens = most if len(trainers) == 1 else max(most, self._step_tokens(trainers[0].base))
        results = zip(attempts, take_step(trainers, tokens), strict=True)
        self._finish(
            [
                attempt
                for attempt, result in results
                if self._settle(attempt, partial(attempt.take, result)) and attempt.done
            ]
        )
        return True

    def give_back(self) -> None:
        """Return every job in hand to the queue."""
        for attempt in list(self._attempts):
            if self._settle(attempt, attempt.give_back):
                self._drop(attempt)

    def _finish(self, attempts: Sequence[Attempt]) -> None:
        """Judge and publish what is done; those that are done together are asked in one batch."""
        judged = [attempt for attempt in attempts if self._settle(attempt, attempt.judge)]
        if not judged or self._loaded is None:
            return
        base, tokenizer, _ = self._loaded
        asked = [attempt.questions() for attempt in judged]
        answers = answer_all(base, asked, max_new=MAX_NEW, max_tokens=self._step_tokens(base))
        for attempt, mine in zip(judged, answers, strict=True):
            self._deliver(attempt, partial(attempt.publish, mine, tokenizer))

    def _step_tokens(self, base: BaseModel) -> int:
        return self._parts.step_tokens or STEP_TOKENS[base.device.type]

    def _deliver(self, attempt: Attempt, publish: Callable[[], None]) -> None:
        if self._settle(attempt, publish) and attempt.published:
            self._drop(attempt)

    def _claim(self) -> Job | None:
        try:
            return self._parts.services.queue.claim(
                self._parts.worker_id, self._parts.services.lease_s, busy=bool(self._attempts)
            )
        except Unavailable as error:
            log.warning("the queue cannot be reached: %s", error)
            return None

    def _load_for(self, attempt: Attempt) -> tuple[BaseModel, ChatTokenizer, SharedBases]:
        if self._loaded is None:
            try:
                base, tokenizer = self._parts.load()
                self._loaded = base, tokenizer, SharedBases(base)
            except Exception as error:
                told = f"The base model cannot be loaded: {error}"
                self._parts.services.queue.append_event(attempt.job, "error", told)
                raise
        return self._loaded

    def _settle(self, attempt: Attempt, action: Callable[[], None]) -> bool:
        """Do something for one job; if that fails the job ends, and no other is touched."""
        try:
            action()
        except Exception as error:
            self._check_device(error)
            attempt.end(error)
            self._drop(attempt)
            return False
        return True

    def _drop(self, attempt: Attempt) -> None:
        self._attempts.remove(attempt)
        attempt.close()
        self._parts.tidy()

    def _check_device(self, error: Exception) -> None:
        """Whether it still works after a failure: one that does not would fail every job."""
        if self._loaded is not None and not works_still(self._loaded[0].device):
            raise DeviceLost(f"the device has failed: {error}") from error
