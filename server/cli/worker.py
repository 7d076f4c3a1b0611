"""`verandah worker`: trains waiting jobs. More than one may run beside a server."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from types import FrameType

import torch

from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.cli.options import add_settings, read_settings, set_log_level
from server.training.job.worker_loop import run_worker
from server.wiring.building import load_model, open_records
from server.wiring.training import LAST_WORDS_S, worker_parts

EXAMPLES = """examples:
  verandah worker                                  beside a server with the same home
  verandah serve --no-worker                       a server that leaves training to others
  VERANDAH_HOME=/data verandah worker --device cuda
"""

_NICENESS = 5  # answering comes before training, where both want the same cores

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    settings = read_settings(options)
    set_log_level(settings)
    stop = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if options.supervised:
        threading.Thread(target=_outlive_nobody, args=(stop,), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)

    own = settings
    if settings.worker_device != "auto":
        own = settings.model_copy(update={"device": settings.worker_device})

    def load() -> tuple[BaseModel, ChatTokenizer]:
        return load_model(own, settings.worker_threads)

    # A server that started us has made the database: if it is missing now, it was taken away.
    with open_records(settings, create=not options.supervised) as records:
        run_worker(replace(worker_parts(settings, records, load), tidy=_give_memory_back), stop)
    return 0


def _give_memory_back() -> None:
    """To the device, on which a server may be as well."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _outlive_nobody(stop: threading.Event) -> None:
    """End when the server has ended: its end of our standard input is then closed."""
    # Below Python's own reader, which would hold a lock that the interpreter wants at exit.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()
    threading.Event().wait(LAST_WORDS_S)
    log.warning("still busy %g s after the server ended; leaving the job to the next", LAST_WORDS_S)
    os._exit(1)
