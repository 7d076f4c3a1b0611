"""`verandah worker`: trains waiting jobs; several may share a home. Knows no HTTP."""

import argparse
import contextlib
import logging
import os
import signal
import threading
from dataclasses import replace
from types import FrameType

import torch

from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.cli.options import add_settings, read_fields, set_log_level
from server.config import Settings
from server.training.job.worker_loop import run_worker
from server.wiring.building import load_model, open_records
from server.wiring.process import wait_for_servers_end
from server.wiring.training import SAVE_JOBS_S, worker_parts

EXAMPLES = """examples:
  verandah worker                                  trains for a server with the same home
  verandah serve --no-worker                       a server without a worker
  VERANDAH_HOME=/data verandah worker --device cuda
"""

_NICENESS = 5  # where both need the same cores, answers come before training

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    settings = read_fields(options, Settings)
    set_log_level(settings)
    stop = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if options.supervised:
        threading.Thread(target=_end_with_server, args=(stop,), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)

    own = settings
    if settings.worker_device != "auto":
        own = settings.model_copy(update={"device": settings.worker_device})

    def load() -> tuple[BaseModel, ChatTokenizer]:
        return load_model(own, settings.worker_threads)

    # A server that started this worker has made the database, so do not make another if it is gone.
    with open_records(settings, create=not options.supervised) as records:
        run_worker(replace(worker_parts(settings, records, load), tidy=_free_cached_memory), stop)
    return 0


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
