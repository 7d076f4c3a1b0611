"""Runs one engine for the server that started it. Knows no HTTP."""

import gc
import os
import threading
import time
from multiprocessing.connection import Client, Connection
from pickle import dumps

from adapters_store.store_errors import StoreError
from server.config import BadOption, Settings
from server.errors import VerandahError
from server.loop_progress import StepProgress
from server.metrics import Metrics
from server.replicas.engine_process import EngineProcess
from server.replicas.messages import EngineFacts, StartFailed
from server.training.colocated.training_thread import fast_thread_switching
from server.wiring.building import RunningEngine, open_records, running_engine
from server.wiring.process import end_when_hung, say, wait_for_servers_end
from server.wiring.training import SAVE_JOBS_S, training_in_thread, trains_in_thread


def run_engine(settings: Settings, address: str) -> None:
    """Answer over the connection at `address` until the server has ended."""
    loops = StepProgress("the start of the engine"), StepProgress("the start of training")
    end_when_hung(*loops)
    grace_s = SAVE_JOBS_S if trains_in_thread(settings) else 0.0
    threading.Thread(target=_end_with_server, args=(grace_s,), daemon=True).start()
    with Client(address) as connection:
        try:
            _answer(settings, connection, *loops)
        except (EOFError, ConnectionError):
            pass  # the server has ended, so this process ends too
        except (VerandahError, StoreError, BadOption) as error:
            # The server prints the error and ends, as if the engine were in its process.
            connection.send_bytes(dumps([StartFailed(error)]))


def _answer(
    settings: Settings,
    connection: "Connection[object, object]",
    serving: StepProgress,
    training: StepProgress,
) -> None:
    metrics = Metrics(settings.served_name)
    with (
        fast_thread_switching(),
        open_records(settings) as records,
        running_engine(settings, records, metrics, say, serving) as engine,
        training_in_thread(settings, records, engine, training) as worker,
    ):
        gc.freeze()  # these objects stay: a collection over them would pause every stream
        child = EngineProcess(connection, engine.loop, engine.adapters, metrics, worker)
        child.run(_facts(engine))


def _facts(engine: RunningEngine) -> EngineFacts:
    base = engine.base
    return EngineFacts(
        base_name=base.name,
        fingerprint=base.fingerprint,
        device=base.device.type,
        dtype=str(base.dtype).removeprefix("torch."),
        max_context=engine.loop.max_context,
        max_answers=engine.loop.max_answers,
        slots=engine.adapters.slots,
        eos_token_ids=base.eos_token_ids,
    )


def _end_with_server(grace_s: float) -> None:
    """End `grace_s` after the server: the main thread notices too, and saves its jobs till then."""
    wait_for_servers_end()
    time.sleep(grace_s)
    os._exit(1)
