"""Trains waiting jobs in a process of its own. Knows no HTTP."""

import contextlib
import logging
import math
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
from server.loop_progress import LOAD_S, LONG_SILENCE_S, StepProgress
from server.training.job.worker_loop import run_worker
from server.wiring.building import device_of, load_model, open_records
from server.wiring.homes import open_home
from server.wiring.process import command, wait_for_servers_end
from server.wiring.training import SAVE_JOBS_S, worker_parts

_NICENESS = 5  # where both need the same cores, answers come before training

log = logging.getLogger(__name__)


def run_until_stopped(settings: Settings, progress: StepProgress, *, supervised: bool) -> int:
    """Train jobs until a signal, or until the server ends that started this process.

    A supervised worker that has had no job for long starts this program anew, in this process, to
    free what torch and the base take.

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
    if supervised:
        threading.Thread(target=_end_with_server, args=(stop,), daemon=True).start()
    with contextlib.suppress(OSError):
        # From the parent's, because this process may have been through here before.
        niceness = os.getpriority(os.PRIO_PROCESS, os.getppid()) + _NICENESS
        os.setpriority(os.PRIO_PROCESS, 0, niceness)

    def load() -> tuple[BaseModel, ChatTokenizer]:
        return load_model(own, settings.worker_threads)

    # A server that started this worker has made the database, so do not make another if it is gone.
    opened = open_records(settings, create=False) if supervised else open_home(settings)
    with opened as records:
        parts = worker_parts(settings, records, load, progress)
        idle_s = settings.worker_idle_s if supervised else math.inf
        run_worker(replace(parts, tidy=_free_cached_memory, idle_s=idle_s), stop)
    if supervised:
        progress.begin("the start of the worker", LOAD_S, LONG_SILENCE_S)
        _start_anew_unless(stop)
    return status


def _start_anew_unless(stop: threading.Event) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from here on it ends this process at once
    if not stop.is_set():
        program, *options = command("worker", "--supervised")
        os.execv(program, [program, *options])


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
