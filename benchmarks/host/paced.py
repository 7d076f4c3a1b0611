"""The host's cost of a step while a device takes its time: the loop alone, and in its own process.

`python -m benchmarks.host.paced` runs the serving loop over a stand-in for an engine: no model,
no device, no HTTP. A step takes `--step-ms` on the simulated device. Launching one holds the
interpreter's lock only in part: as torch's operators do, `--operators` of them release it for some
microseconds each, so that other threads get their turns. Answers end and begin again all the time.
Alone, a listener on the loop's thread asks again. Apart, `EngineProcess` sends everything to
another process, which asks again.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from random import Random
from statistics import median
from typing import cast

from benchmarks.host.loop_cost import BLOCK_TOKENS, InstantEngine, InstantStep, NoSlots, pieces
from benchmarks.support.report import origin, table
from benchmarks.support.stand_ins import run_as_engine
from server.engine.blocks import BlockPool
from server.engine.sequence import Chunk, SamplingParams, StepOutput
from server.metrics import Metrics
from server.replicas.replica import Replica
from server.scheduler.admission import Slots
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, Listener, TextDelta

_OPERATOR = bytes(8192)  # hashed, it takes about as long as an operator takes to launch a kernel
_SHARES = (0.3, 0.95)  # of all steps: those between count

Costs = dict[str, float]


@dataclass(frozen=True)
class Shape:
    """What is measured."""

    rows: int
    prompt_tokens: int
    answer_tokens: int
    step_ms: float
    operators: int
    steps: int


@dataclass(frozen=True)
class PacedStep:
    """A step that has run at `ready_at`."""

    instant: InstantStep
    ready_at: float

    def outputs(self) -> list[StepOutput]:
        time.sleep(max(self.ready_at - time.perf_counter(), 0))
        return self.instant.outputs()


@dataclass
class Marks:
    """At each launch, on the loop's thread: the time, its CPU time, the process's, rows run."""

    launches: list[tuple[float, float, float, int]] = field(default_factory=list)

    def take(self, rows: int) -> None:
        times = time.perf_counter(), time.thread_time(), time.process_time()
        self.launches.append((*times, rows))

    def costs(self) -> Costs:
        """Medians over the steps but for the rate: neighbours on the machine come and go."""
        low, high = (int(share * len(self.launches)) for share in _SHARES)
        part = self.launches[low:high]
        steps = [
            (later[0] - it[0], later[1] - it[1], (later[2] - it[2]) - (later[1] - it[1]), it[3])
            for it, later in pairwise(part)
        ]
        return {
            "rate": sum(rows for *_, rows in steps) / (part[-1][0] - part[0][0]),
            "ms": median(wall for wall, *_ in steps) * 1e3,
            "rows": median(rows for *_, rows in steps),
            "loop": median(loop / rows for _, loop, _, rows in steps) * 1e6,
            "others": sum(others for *_, others, _ in steps) / sum(it[3] for it in steps) * 1e6,
        }


class PacedEngine:
    """One step in flight while the next is prepared; steps run one after the other."""

    ahead = 1

    def __init__(self, shape: Shape) -> None:
        self._instant = InstantEngine(1)
        self._shape = shape
        self._free_at = 0.0
        self.marks = Marks()
        self.costs = self.marks.costs

    def launch(self, chunks: Seq[Chunk]) -> PacedStep:
        self.marks.take(len(chunks))
        for _ in range(self._shape.operators):
            sha256(_OPERATOR)
        now = time.perf_counter()
        self._free_at = max(now, self._free_at) + self._shape.step_ms / 1e3
        return PacedStep(self._instant.launch(chunks), self._free_at)


def loop_over(engine: PacedEngine, shape: Shape) -> ServingLoop:
    slots: Slots = NoSlots()  # type: ignore[assignment]
    context = shape.prompt_tokens + shape.answer_tokens + 2 * BLOCK_TOKENS
    return ServingLoop(
        engine,
        slots,
        BlockPool(context // BLOCK_TOKENS * shape.rows, BLOCK_TOKENS, prefix_cache=False),
        pieces().stream,
        eos=frozenset({2}),
        limits=Limits(shape.rows, 1024, 4 * shape.rows, context),
        metrics=Metrics("benchmark"),
    )


class Asker:
    """Asks again whenever an answer ends; the first answers have random lengths."""

    def __init__(self, submit: Callable[[Generation, Listener], object], shape: Shape) -> None:
        self._submit = submit
        self._shape = shape
        self._draw = Random(0)
        self._left = shape.rows * shape.steps
        self._listener = CallbackListener(self._hear)
        self.done = threading.Event()

    def start(self) -> "Asker":
        for _ in range(self._shape.rows):
            self._ask(self._draw.randint(1, self._shape.answer_tokens))
        return self

    def _hear(self, delta: TextDelta) -> None:
        self._left -= 1
        if self._left <= 0:
            self.done.set()
        elif delta.finish is not None:
            self._ask(self._shape.answer_tokens)

    def _ask(self, tokens: int) -> None:
        start = self._draw.randrange(1 << 20)
        prompt = tuple(range(start, start + self._shape.prompt_tokens))
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        self._submit(Generation("benchmark", "owner", prompt, params), self._listener)


def alone(shape: Shape) -> Costs:
    """The loop and its client in one process."""
    engine = PacedEngine(shape)
    loop = loop_over(engine, shape)
    gc.freeze()  # as `verandah engine` does
    loop.start()
    Asker(loop.submit, shape).start().done.wait()
    costs = engine.costs()
    loop.stop(0)
    return costs


def answer(shape: Shape, address: str) -> None:
    """An engine's process. A call for its adapters returns the cost of its steps."""
    engine = PacedEngine(shape)
    loop = loop_over(engine, shape)
    gc.freeze()
    loop.start()
    run_as_engine(loop, address, engine.costs)


def apart(shape: Shape) -> Costs:
    """The loop in a process of its own, and its client in this one."""
    replica = Replica(0, _command("apart", shape), os.environ)
    replica.start()
    try:
        connection = replica.wait()
        Asker(connection.submit, shape).start().done.wait()
        return cast(Costs, connection.call("snapshot"))
    finally:
        replica.stop(0)


def _command(mode: str, shape: Shape) -> list[str]:
    return [sys.executable, "-m", "benchmarks.host.paced", "--as", mode, json.dumps(vars(shape))]


def measure(shape: Shape) -> dict[str, Costs]:
    """One run of each, one after the other."""
    process = subprocess.run(_command("alone", shape), capture_output=True, text=True, check=True)
    return {"alone": json.loads(process.stdout), "apart": apart(shape)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--step-ms", type=float, default=2.5)
    parser.add_argument("--operators", type=int, default=40)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as", nargs=2, dest="role", help=argparse.SUPPRESS)
    parser.add_argument("--connect", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    rounds, role, address = (options.pop(name) for name in ("rounds", "role", "connect"))
    if role is not None:
        shape = Shape(**json.loads(role[1]))
        print(json.dumps(alone(shape))) if role[0] == "alone" else answer(shape, address)
        return
    runs = [measure(Shape(**options)) for _ in range(rounds)]
    lines: list[list[object]] = []
    for mode in ("alone", "apart"):
        medians = {key: median(run[mode][key] for run in runs) for key in runs[0][mode]}
        lines.append([mode, *medians.values()])
    ratio = median(run["apart"]["rate"] / run["alone"]["rate"] for run in runs)
    columns = ("", "rows/s", "ms a step", "rows a step", "loop, us a row", "others, us a row")
    print(origin(), table(columns, lines), f"Apart over alone: {ratio:.3f}", sep="\n\n")


if __name__ == "__main__":
    main()
