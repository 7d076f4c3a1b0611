"""`verandah engine`: one engine, for the server that started it. Not for people."""

import argparse
import gc
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Client, Connection
from pickle import dumps
from types import FrameType

from adapters_store.store_errors import StoreError
from server.cli.options import add_settings, read_settings, set_log_level
from server.config import BadOption, Settings
from server.errors import VerandahError
from server.metrics import Metrics
from server.replicas.engine_process import EngineProcess
from server.replicas.messages import EngineFacts, StartFailed
from server.training.colocated.training_thread import fast_thread_switching
from server.wiring.building import Engine, open_records, running_engine
from server.wiring.training import LAST_WORDS_S, training_beside, trains_beside

EXAMPLES = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connect", required=True, help="the address of who asks")
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _end)
    settings = read_settings(options)
    set_log_level(settings)
    last_words_s = LAST_WORDS_S if trains_beside(settings) else 0.0
    threading.Thread(target=_outlive_nobody, args=(last_words_s,), daemon=True).start()
    with Client(options.connect) as connection:
        try:
            _answer(settings, connection)
        except (EOFError, ConnectionError):
            pass  # the server is gone, and this process with it
        except (VerandahError, StoreError, BadOption) as error:
            # The server says it, in one sentence, and ends as if the engine were in its process.
            connection.send_bytes(dumps([StartFailed(error)]))
    return 0


def _answer(settings: Settings, connection: "Connection[object, object]") -> None:
    metrics = Metrics(settings.served_name)
    with (
        fast_thread_switching(),
        open_records(settings) as records,
        running_engine(settings, records, metrics, _say) as engine,
        training_beside(settings, records, engine) as worker,
    ):
        gc.freeze()  # what is there will stay: looking through it again pauses every stream
        child = EngineProcess(connection, engine.loop, engine.adapters, metrics, worker)
        child.run(_facts(engine))


def _facts(engine: Engine) -> EngineFacts:
    base = engine.base
    return EngineFacts(
        base_name=base.name,
        fingerprint=base.fingerprint,
        device=base.device.type,
        dtype=str(base.dtype).removeprefix("torch."),
        max_context=engine.loop.max_context,
        max_answers=engine.loop.max_answers,
        slots=engine.adapters.slots,
    )


def _outlive_nobody(last_words_s: float) -> None:
    """End when the server has ended: its end of our standard input is then closed.

    The main thread learns of it as well; what it may take for it is `last_words_s`.
    """
    # Below Python's own reader, which would hold a lock that the interpreter wants at exit.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    time.sleep(last_words_s)
    os._exit(1)


def _say(message: str) -> None:
    print(f"verandah: {message}", file=sys.stderr, flush=True)


def _end(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM, as an exception: everything that was opened is closed on the way out."""
    raise SystemExit(0)
