"""Trains waiting jobs in a process of its own. Knows no HTTP."""

import contextlib
import logging
import os
import signal
import threading
from dataclasses import replace
from types import FrameType

import torch

from server.bases.base_files import check_config
from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.config import Settings
from server.loop_progress import StepProgress
from server.training.job.worker_loop import run_worker
from server.wiring.building import device_of, load_model, open_records
from server.wiring.homes import open_home
from server.wiring.process import end_when_hung, wait_for_servers_end
from server.wiring.training import SAVE_JOBS_S, worker_parts

_NICENESS = 5  # where both need the same cores, answers come before training

log = logging.getLogger(__name__)


def run_until_stopped(settings: Settings, *, supervised: bool) -> int:
    """Train jobs until a signal, or until the server ends that started this process.

    Returns: the process's status; Ctrl-C is 130, as of every command.

    Raises:
        BadOption, UnsupportedModel: a setting cannot be right. Nothing was made in the home.
        Unavailable: the home has lost something, or cannot be written.
    """
    own = settings
    if settings.worker_device != "auto":
        own = settings.model_copy(update={"device": settings.worker_device})
    if not supervised:  # a server has checked them
        device_of(own)
        check_config(own.model)
    stop, status = threading.Event(), 0

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal status
        status = 130 if number == signal.SIGINT else 0
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    progress = StepProgress("the start of the worker")
    end_when_hung(progress, supervised=supervised)
    if supervised:
        threading.Thread(target=_end_with_server, args=(stop,), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)

    def load() -> tuple[BaseModel, ChatTokenizer]:
        return load_model(own, settings.worker_threads)

    # A server that started this worker has made the database, so do not make another if it is gone.
    opened = open_records(settings, create=False) if supervised else open_home(settings)
    with opened as records:
        parts = worker_parts(settings, records, load, progress)
        run_worker(replace(parts, tidy=_free_cached_memory), stop)
    return status


def _free_cached_memory() -> None:
    """Return memory that torch caches to the device, which a server may share."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _end_with_server(stop: threading.Event) -> None:
    """End after the server has ended."""
    wait_for_servers_end()
    stop.set()
    threading.Event().wait(SAVE_JOBS_S)
    log.warning(
        "saving jobs took over %g s; another worker continues from the last save", SAVE_JOBS_S
    )
    os._exit(1)
