"""Parts of a server that do nothing, so that the cost of the others can be measured."""

import os
from collections.abc import Callable
from multiprocessing.connection import Client
from types import SimpleNamespace

from server.metrics import Metrics
from server.replicas.engine_process import EngineProcess, Loop
from server.replicas.messages import EngineFacts


class NoText:
    """`server.scheduler.stop_strings.Decoder` of a model that has no tokenizer."""

    def __init__(self, *, skip_special: bool = True) -> None:
        self.skips = skip_special

    def push(self, token_id: int) -> str:
        return ""

    def unshown(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def run_as_engine(loop: Loop, address: str, snapshot: Callable[[], object] = list) -> None:
    """Run a loop as an engine's process without adapters; ends when the other side is gone.

    `snapshot` is what the other side gets when it asks for the adapters in memory.
    """
    residency = SimpleNamespace(loads=0, evictions=0, hits=0, snapshot=snapshot)
    for name in ("pin", "unpin", "forget"):
        setattr(residency, name, lambda ref: None)
    limits = loop.max_context, loop.max_answers
    facts = EngineFacts("stand-in", "f" * 64, "cpu", "float32", *limits, slots=8)
    with Client(address) as connection:
        try:
            EngineProcess(connection, loop, residency, Metrics("base")).run(facts)
        except (EOFError, OSError):
            os._exit(0)
