"""Starts training in the engine's process or readies it for its own. Knows no training step."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.config import BadOption, Settings
from server.loop_progress import StepProgress
from server.tenancy.shares import Shares
from server.tenancy.visibility import visible
from server.training.colocated.memory_headroom import keep_memory_headroom
from server.training.colocated.training_thread import TrainingThread, fast_thread_switching
from server.training.job.job_phase import JobServices
from server.training.job.worker_loop import WorkerParts, run_worker
from server.wiring.building import Records, RunningEngine, device_of
from server.wiring.process import end_soon, worker_id

log = logging.getLogger(__name__)

SAVE_JOBS_S: Final = 20.0
"""How long a worker may take to save its jobs after its server has died."""
_STOP_S: Final = 8.0  # the same at a stop, which must end before the supervisor kills this process


def trains_in_thread(settings: Settings) -> bool:
    """Whether an engine's process trains as well. Raises BadOption."""
    if not settings.worker or settings.worker_process == "yes":
        return False
    engine = device_of(settings)
    same = settings.worker_device in ("auto", engine)
    if settings.worker_process == "no" and not same:
        raise BadOption(
            f"--worker-process no: the engine runs on {engine} and --worker-device is "
            f"{settings.worker_device}; leave one of the two options out"
        )
    return same and (engine == "cuda" or settings.worker_process == "no")


@contextmanager
def training_in_thread(
    settings: Settings, records: Records, engine: RunningEngine, progress: StepProgress
) -> Iterator[TrainingThread | None]:
    """Train in a thread of this process until the end, if the settings ask for it.

    Args:
        progress: of the training.
    """
    if not trains_in_thread(settings):
        progress.end()
        yield None
        return
    thread = TrainingThread(
        engine.base, engine.pulse, settings.training_latency, lost=end_soon, progress=progress
    )
    if engine.base.device.type == "cuda":
        keep_memory_headroom(thread.base)
    # Two threads must not share one.
    tokenizer = load_tokenizer(settings.model, sanitizes=settings.sanitize_control_tokens)
    parts = worker_parts(settings, records, lambda: (thread.base, tokenizer), progress)
    thread.start(
        partial(run_worker, parts),
        on_end=lambda: records.jobs.abandon(parts.worker_id, "failed; its log says why"),
    )
    log.info("this process trains jobs, on %s", engine.base.device)
    try:
        with fast_thread_switching():
            yield thread
    finally:
        thread.stop()
        if not thread.join(_STOP_S):
            log.warning(
                "training did not stop within %g s; another worker continues its jobs", _STOP_S
            )


def worker_parts(
    settings: Settings,
    records: Records,
    load: Callable[[], tuple[BaseModel, ChatTokenizer]],
    progress: StepProgress,
) -> WorkerParts:
    """The services and settings of a worker, in any process."""
    return WorkerParts(
        services=JobServices(
            queue=records.jobs,
            files=records.files,
            store=records.store,
            served_name=settings.served_name,
            folder=settings.home_path / "training",
            max_rank=settings.max_rank,
            lease_s=settings.lease_s,
            checkpoint_every_s=settings.checkpoint_every_s,
            progress=progress,
            may_copy=partial(_may_copy, Shares(records.database)),
        ),
        load=load,
        worker_id=worker_id(os.getpid()),
        poll_s=settings.worker_poll_s,
        jobs=settings.worker_jobs,
        step_tokens=settings.worker_step_tokens,
    )


def _may_copy(shares: Shares, owner: str, of: str, name: str) -> bool:
    """As it is now: a job may have waited long since it was made. Raises Unavailable."""
    if owner != of:
        shares.refresh()
    return visible(owner, of, name, shares) in ("own", "copy")
