"""The worker: claim jobs, train them in one batch, publish their adapters. Knows no HTTP.

A waiting job joins the batch between two steps, and a finished one leaves it. A worker may be
killed at any moment: its jobs are claimed again once their leases end, and resume from their last
checkpoints.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

from server.adapters.memory.matrices import SharedBases
from server.bases.model import BaseModel, device_works
from server.bases.tokenizer import ChatTokenizer
from server.errors import Unavailable
from server.jobs.queue.job import Job
from server.loop_progress import LOAD_S, LONG_SILENCE_S, STEP_S
from server.training.job.claimed_job import ClaimedJob
from server.training.job.evaluated_job import EvaluatedJob
from server.training.job.job_phase import Claim, JobPhase, JobServices
from server.training.job.running_job import RunningJob
from server.training.job.samples import MAX_NEW
from server.training.run.checkpoint import LEFTOVER_AGE_S, sweep
from server.training.run.greedy_answers import answer_all
from server.training.run.run_steps import take_step

log = logging.getLogger(__name__)

STEP_TOKENS: Final = {"cpu": 4096, "cuda": 8192}
"""Positions of a forward pass of several jobs, by device; see decision 11."""
_JOB_S = 120.0
"""Seconds for what happens to one job between two steps: the database may keep it waiting."""

_Phase = TypeVar("_Phase", bound=JobPhase)
Load = Callable[[], tuple[BaseModel, ChatTokenizer]]


@dataclass(frozen=True)
class WorkerParts:
    """What a worker works with.

    `load` makes the base model; it is called at the first job. At most `jobs` are trained at once.
    A forward pass of theirs takes `step_tokens` positions (0: what suits the device), unless one
    job's own limit is higher. `tidy` is called whenever a job has left and its memory is free.
    After `idle_s` without a job the worker ends.
    """

    services: JobServices
    load: Load
    worker_id: str
    poll_s: float = 0.5
    jobs: int = 8
    step_tokens: int = 0
    tidy: Callable[[], None] = lambda: None
    idle_s: float = math.inf


class DeviceLost(Exception):
    """The accelerator has failed, and this process cannot use it again."""


def run_worker(parts: WorkerParts, stop: threading.Event) -> None:
    """Work through the queue until `stop` is set; then give back the jobs in hand, and return.

    Returns also if the worker has had no job for as long as `parts` says.

    Raises:
        DeviceLost: the accelerator cannot be used again. The jobs in hand are left to their leases.
    """
    progress = parts.services.progress
    progress.begin("tidying the folder of checkpoints", LOAD_S)
    sweep(parts.services.folder, older_than_s=LEFTOVER_AGE_S, keep=_unfinished(parts))
    worker = _Worker(parts, stop)
    try:
        while not stop.is_set() and worker.idle_for() < parts.idle_s:
            worker.claim_jobs()
            if not worker.step():
                progress.begin("waiting for a job", parts.poll_s + STEP_S)
                stop.wait(parts.poll_s)
    except DeviceLost:  # any of its jobs may be the cause: each counts a lost worker
        raise
    except BaseException:
        worker.give_back()
        raise
    else:
        worker.give_back()
    finally:
        worker.close()


def _unfinished(parts: WorkerParts) -> set[str]:
    """Jobs whose checkpoints are still needed: a paused one may wait for long."""
    try:
        return parts.services.queue.unfinished()
    except Unavailable as error:
        log.warning("the queue cannot be reached: %s", error)
        return {entry.name for entry in parts.services.folder.glob("*")}


class _Worker:
    """Keeps the base model from job to job, and each job in hand in its present phase."""

    def __init__(self, parts: WorkerParts, stop: threading.Event) -> None:
        self._parts = parts
        self._stop = stop
        self._progress = parts.services.progress
        self._loaded: tuple[BaseModel, ChatTokenizer, SharedBases] | None = None
        self._jobs: dict[str, JobPhase] = {}
        self._next_claim = 0.0
        self._hook: RemovableHandle | None = None
        self._last_job = time.monotonic()

    def idle_for(self) -> float:
        """Seconds since it had a job in hand."""
        if self._jobs:
            self._last_job = time.monotonic()
        return time.monotonic() - self._last_job

    def claim_jobs(self) -> None:
        """Claim waiting jobs while there is room; between steps, no oftener than the poll.

        Raises what the base model raises when it cannot be loaded.
        """
        if time.monotonic() < self._next_claim:
            return
        while len(self._jobs) < self._parts.jobs and not self._stop.is_set():
            self._progress.begin("claiming a job", _JOB_S)
            job = self._claim()
            if job is None:
                break
            log.info("job %s, attempt %d", job.id, job.attempt)
            claimed = ClaimedJob(Claim(self._parts.services, job))
            self._jobs[job.id] = claimed
            running = self._move(claimed, partial(claimed.prepare, *self._load_for(job)))
            if running is not None and running.done:
                self._finish([running])
        self._next_claim = time.monotonic() + self._parts.poll_s

    def step(self) -> bool:
        """One optimizer step of every running job; False if there is none.

        An evaluated job that is still in hand waits for room on the disk.
        """
        for evaluated in self._in_phase(EvaluatedJob):
            self._move(evaluated, evaluated.deliver)
        running = self._in_phase(RunningJob)
        if not running:
            return False
        trainers = [job.trainer for job in running]
        most = max(trainer.part_tokens for trainer in trainers)
        tokens = most if len(trainers) == 1 else max(most, self._step_tokens(trainers[0].base))
        results = zip(running, take_step(trainers, tokens), strict=True)
        moved = [self._move(job, partial(job.take, result)) for job, result in results]
        self._finish([job for job in moved if job is not None and job.done])
        return True

    def give_back(self) -> None:
        """Return every job in hand to the queue."""
        for job in list(self._jobs.values()):
            self._move(job, job.give_back)

    def close(self) -> None:
        """Watch the base model no more: another worker may use it."""
        self._progress.end()
        if self._hook is not None:
            self._hook.remove()

    def _finish(self, jobs: Sequence[RunningJob]) -> None:
        """Evaluate and publish jobs that are done; their questions are asked in one batch."""
        moved = [self._move(job, job.finish) for job in jobs]
        evaluated = [job for job in moved if job is not None]
        if not evaluated:
            return
        base = jobs[0].trainer.base
        questions = [job.questions() for job in evaluated]
        answers = answer_all(base, questions, max_new=MAX_NEW, max_tokens=self._step_tokens(base))
        for job, job_answers in zip(evaluated, answers, strict=True):
            self._move(job, partial(job.publish, job_answers))

    def _in_phase(self, phase: type[_Phase]) -> list[_Phase]:
        return [job for job in self._jobs.values() if isinstance(job, phase)]

    def _step_tokens(self, base: BaseModel) -> int:
        return self._parts.step_tokens or STEP_TOKENS[base.device.type]

    def _claim(self) -> Job | None:
        services, busy = self._parts.services, bool(self._jobs)
        try:
            return services.queue.claim(self._parts.worker_id, services.lease_s, busy=busy)
        except Unavailable as error:
            log.warning("the queue cannot be reached: %s", error)
            return None

    def _load_for(self, job: Job) -> tuple[BaseModel, ChatTokenizer, SharedBases]:
        if self._loaded is None:
            try:
                self._progress.begin("loading the base model", LOAD_S, LONG_SILENCE_S)
                base, tokenizer = self._parts.load()
                self._hook = base.model.register_forward_pre_hook(self._passes, with_kwargs=True)
                self._loaded = base, tokenizer, SharedBases(base)
            except Exception as error:
                message = f"The base model cannot be loaded: {error}"
                self._parts.services.queue.append_event(job, "error", message)
                raise
        return self._loaded

    def _move(self, job: JobPhase, action: Callable[[], _Phase | None]) -> _Phase | None:
        """Take a job to the phase that `action` returns, and return that.

        None: the job has left this worker. If `action` raises, it ends, and no other is touched.
        """
        self._progress.begin(f"work on job {job.claim.job.id}", _JOB_S)
        try:
            phase = action()
        except Exception as error:
            self._check_device(error)
            job.end(error)
            phase = None
        if phase is None:
            del self._jobs[job.claim.job.id]
            job.claim.close()
            self._parts.tidy()
        else:
            self._jobs[job.claim.job.id] = phase
        return phase

    def _passes(self, _model: nn.Module, _inputs: object, named: Mapping[str, Any]) -> None:
        """A pass through the base begins, in training or in scoring: that is progress."""
        self._progress.begin_step(named["input_ids"].numel())

    def _check_device(self, error: Exception) -> None:
        """Raise DeviceLost unless the device works after a failure: it would fail every job."""
        if self._loaded is not None and not device_works(self._loaded[0].device):
            raise DeviceLost(f"the device has failed: {error}") from error
