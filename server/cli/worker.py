"""`verandah worker`: trains waiting jobs. `serve` starts one; more may run beside it."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from types import FrameType

import torch

from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.cli.building import device_of, load_model, open_records
from server.cli.itself import worker_id
from server.cli.options import add_settings, read_settings, set_log_level
from server.cli.sharing import Borrower
from server.training.desk import Desk
from server.training.worker import WorkerParts, run_worker

EXAMPLES = """examples:
  verandah worker                                  beside a server with the same home
  verandah serve --no-worker                       a server that leaves training to others
  VERANDAH_HOME=/data verandah worker --device cuda
"""

_NICENESS = 5  # answering comes before training, where both want the same cores
_LAST_WORDS_S = 20.0

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

    def load_own() -> tuple[BaseModel, ChatTokenizer]:
        return load_model(own, settings.worker_threads)

    borrower = Borrower(own, torch.device(device_of(own)), load_own, stop)
    # A server that started us has made the database: if it is missing now, it was taken away.
    with open_records(settings, create=not options.supervised) as records:
        desk = Desk(
            queue=records.jobs,
            files=records.files,
            store=records.store,
            served_name=settings.served_name,
            folder=settings.home_path / "training",
            max_rank=settings.max_rank,
            lease_s=settings.lease_s,
            checkpoint_every_s=settings.checkpoint_every_s,
        )
        parts = WorkerParts(
            desk=desk,
            load=borrower.load,
            worker_id=worker_id(os.getpid()),
            poll_s=settings.worker_poll_s,
            jobs=settings.worker_jobs,
            step_tokens=settings.worker_step_tokens,
            positions=borrower.positions,
        )
        run_worker(parts, stop)
    return os.EX_TEMPFAIL if borrower.bereft else 0


def _outlive_nobody(stop: threading.Event) -> None:
    """End when the server has ended: its end of our standard input is then closed."""
    # Below Python's own reader, which would hold a lock that the interpreter wants at exit.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()
    threading.Event().wait(_LAST_WORDS_S)
    log.warning(
        "still busy %g s after the server ended; leaving the job to the next", _LAST_WORDS_S
    )
    os._exit(1)
