"""Where jobs are trained: by a thread of the engine's process, or by a process of their own."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer, load_tokenizer
from server.config import BadOption, Settings
from server.training.colocated.memory_headroom import keep_memory_headroom
from server.training.colocated.training_thread import TrainingThread, fast_thread_switching
from server.training.job.job_phase import JobServices
from server.training.job.worker_loop import WorkerParts, run_worker
from server.wiring.building import Engine, Records, device_of
from server.wiring.process import end_soon, worker_id

log = logging.getLogger(__name__)

LAST_WORDS_S: Final = 20.0
"""For a worker to save its jobs and give them back when the server has ended without a word."""
_STOPPING_S: Final = 8.0  # the same, at a stop: before who waits for this process kills it


def trains_beside(settings: Settings) -> bool:
    """Whether an engine's process trains as well. Raises BadOption."""
    if not settings.worker or settings.worker_process == "yes":
        return False
    engine = device_of(settings)
    same = settings.worker_device in ("auto", engine)
    if settings.worker_process == "no" and not same:
        raise BadOption(
            f"--worker-process no: the engine runs on {engine} and --worker-device is "
            f"{settings.worker_device}; leave one of the two out"
        )
    return same and (engine == "cuda" or settings.worker_process == "no")


@contextmanager
def training_beside(
    settings: Settings, records: Records, engine: Engine
) -> Iterator[TrainingThread | None]:
    """A thread that trains beside the engine, where the settings ask for one, until the end."""
    if not trains_beside(settings):
        yield None
        return
    beside = TrainingThread(engine.base, engine.pulse, settings.training_latency, lost=end_soon)
    if engine.base.device.type == "cuda":
        keep_memory_headroom(beside.base)
    tokenizer = load_tokenizer(settings.model)  # its own: two threads must not share one
    parts = worker_parts(settings, records, lambda: (beside.base, tokenizer))
    beside.start(partial(run_worker, parts), on_end=lambda: records.jobs.abandon(parts.worker_id))
    log.info("jobs are trained in this process, on %s", engine.base.device)
    try:
        with fast_thread_switching():
            yield beside
    finally:
        beside.stop()
        if not beside.join(_STOPPING_S):
            log.warning("still training after %g s; its jobs are left to the next", _STOPPING_S)


def worker_parts(
    settings: Settings,
    records: Records,
    load: Callable[[], tuple[BaseModel, ChatTokenizer]],
) -> WorkerParts:
    """What a worker works with, whatever process it is in."""
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
        ),
        load=load,
        worker_id=worker_id(os.getpid()),
        poll_s=settings.worker_poll_s,
        jobs=settings.worker_jobs,
        step_tokens=settings.worker_step_tokens,
    )
