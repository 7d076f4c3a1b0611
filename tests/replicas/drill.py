"""A program: an engine's process whose engine counts, without torch.

`python -m tests.replicas.drill PACE_S --connect ADDRESS`. A token takes PACE_S. Adapters named
"broken" cannot be served, and "full" cannot be pinned. PACE_S may be "unfit" or "mute", or "stuck":
then a step that follows a few others never ends. It may be silent for 4 s.
"""

import contextlib
import os
import sys
import threading
import time
from multiprocessing.connection import Client
from pickle import dumps
from typing import cast

from adapters_store.manifest import AdapterRef
from server.adapters.adapter_status import AdapterState, AdapterStatus
from server.engine.blocks import BlockPool
from server.errors import Conflict, InvalidAdapter, UnsupportedModel
from server.loop_progress import watch
from server.metrics import Metrics
from server.replicas.engine_process import EngineProcess
from server.replicas.messages import EngineFacts, StartFailed
from server.scheduler.loop import Limits, ServingLoop
from tests.scheduler.fakes import CountingEngine, FakeSlots, NumberDecoder

LIMITS = Limits(max_rows=4, max_step_tokens=16, max_waiting=4, max_context=256)


class Memory(FakeSlots):
    """Loads at once; knows pins."""

    def __init__(self) -> None:
        super().__init__()
        self.pins: set[AdapterRef] = set()
        self.slots = 8
        self.loads = self.evictions = self.hits = 0

    def prepare(self, ref: AdapterRef) -> None:
        if ref.name == "broken":
            self.broken[ref] = InvalidAdapter("it is broken")
        self.loads += ref not in self.loaded
        self.loaded.add(ref)

    def pin(self, ref: AdapterRef) -> None:
        if ref.name == "full":
            raise Conflict("no slot would be left")
        self.pins.add(ref)
        self.prepare(ref)

    def unpin(self, ref: AdapterRef) -> None:
        self.pins.discard(ref)

    def forget(self, ref: AdapterRef) -> None:
        self.loaded.discard(ref)

    def snapshot(self) -> list[AdapterStatus]:
        state = AdapterState.RESIDENT
        return [
            AdapterStatus(ref, state, slot=1, bytes=4, pinned=ref in self.pins)
            for ref in self.loaded
        ]


class Training:
    """`server.training.colocated.training_thread.TrainingThread`: it began again twice."""

    alive = True
    restarts = 2
    problem = ""

    def stop(self) -> None:
        self.alive = False


def counting_loop(memory: Memory, metrics: Metrics, pace_s: float) -> ServingLoop:
    engine = CountingEngine()
    engine.before_step = lambda: time.sleep(pace_s)
    return ServingLoop(
        engine,
        memory,
        BlockPool(128, 4),
        NumberDecoder,
        eos=frozenset({999}),
        limits=LIMITS,
        metrics=metrics,
    )


def outlive_nobody() -> None:
    with contextlib.suppress(ConnectionError):
        while os.read(0, 4096):
            pass
    os._exit(1)


def get_stuck(loop: ServingLoop) -> None:
    engine, progress = cast(CountingEngine, loop._engine), loop.progress
    engine.before_step = lambda: time.sleep(999 if len(engine.steps) > 3 else 0)
    progress.allowed = lambda tokens: 1.0  # type: ignore[method-assign]


def beat(_silent_s: float) -> None:
    os.write(0, bytes([4]))


def main(how: str, address: str) -> None:
    threading.Thread(target=outlive_nobody, daemon=True).start()
    if how == "mute":
        raise SystemExit(3)
    with Client(address) as connection:
        if how == "unfit":
            connection.send_bytes(dumps([StartFailed(UnsupportedModel("there is no such model"))]))
            return
        memory, metrics = Memory(), Metrics("base")
        loop = counting_loop(memory, metrics, 0.02 if how == "stuck" else float(how))
        if how == "stuck":
            get_stuck(loop)
        loop.start()
        watch([loop.progress], lambda _: os._exit(os.EX_TEMPFAIL), beat=beat)
        facts = EngineFacts(
            "counter", "f" * 32, "cpu", "float32", loop.max_context, loop.max_answers, 8
        )
        with contextlib.suppress(EOFError, OSError):
            EngineProcess(connection, loop, memory, metrics, Training()).run(facts)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3])
