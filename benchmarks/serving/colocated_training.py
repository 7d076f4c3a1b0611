"""Training on the GPU that serves: what it costs the answers, and how much of its speed is left.

    python -m benchmarks.serving.colocated_training --shape 1b --device cuda
    python -m benchmarks.serving.colocated_training --shape tiny --streams 4 --answer-tokens 60 \\
        --rank 8 --tokens 24 --seconds 1 --rounds 1

Steady streams with VeRA adapters are measured alone and while one job trains (VeRA on q and v), in
turns. The first row trains as the server does; the second is the same without any rests.
"""

import argparse
import itertools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from benchmarks.adapters.cold import gaps_of
from benchmarks.support import crowd
from benchmarks.support.base_shapes import SHAPES, base_of
from benchmarks.support.crowd import VERA_QV
from benchmarks.support.live import AnswerTimes, Live, serving
from benchmarks.support.report import origin, table, verdict
from benchmarks.training.training_sides import Marks, Plain, Product, TrainingSide, endless_work
from server.bases.model import BaseModel
from server.pulse import Pulse

PROMPT_TOKENS: Final = 128
BAR_GAP, BAR_SHARE, BAR_IDLE, BAR_MEMORY = 1.3, 0.4, 0.95, 0.15
SIDES: Final = ("product", "never")


@dataclass
class Measured:
    """One side: seconds between tokens, alone and with it, and its tokens a second."""

    name: str
    alone: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Memory:
    """Device memory in bytes: of the base's weights, what training adds between its steps, and what
    one step adds to that at most."""

    weights: int
    added: int
    activations: int


class Streams:
    """One stream for each adapter, all at once, again and again."""

    def __init__(self, live: Live, refs: Sequence[AdapterRef], answer_tokens: int) -> None:
        self._ask = partial(live.ask_all, refs, PROMPT_TOKENS, answer_tokens)

    def once(self) -> list[AnswerTimes]:
        return self._ask()

    def gaps(self, times: int) -> list[float]:
        return [gap for _ in range(times) for gap in gaps_of(self.once())]


def trained_per_s(marks: Marks, begin: float, end: float) -> float:
    """Tokens a second between two moments; a step counts by the part of it that lies there."""
    if len(marks) < 2:
        return 0.0
    times, tokens = zip(*marks, strict=True)
    first, last = np.interp((begin, end), times, tokens)
    return float(last - first) / (end - begin)


def in_turns(
    measured: Measured, side: TrainingSide, streams: Streams, options: argparse.Namespace
) -> None:
    """Measure the streams alone, then with training; the first of those do not count."""
    for _ in range(options.rounds):
        measured.alone += streams.gaps(options.times)
        side.start()
        try:
            for _ in range(options.warming):
                streams.once()
            begin = time.perf_counter()
            measured.training += streams.gaps(options.times)
            end = time.perf_counter()
        finally:
            marks = side.stop()
        measured.trained.append(trained_per_s(marks, begin, end))


def quietly(side: TrainingSide, seconds: float) -> float:
    """Tokens a second of training while nobody asks anything: the median of five stretches."""
    side.start()
    time.sleep(seconds * 1.25)
    marks = side.stop()
    times = np.linspace(marks[-1][0] - seconds, marks[-1][0], 6)
    return statistics.median(trained_per_s(marks, *ends) for ends in itertools.pairwise(times))


def idle_share(
    product: TrainingSide, plain: TrainingSide, seconds: float, rounds: int
) -> tuple[float, float]:
    """Training's speed alone, and the share of it that the server's training has beside an idle
    engine: medians over turns."""
    turns = [(quietly(plain, seconds), quietly(product, seconds)) for _ in range(rounds + 1)][1:]
    alone = statistics.median(one for one, _ in turns)
    return alone, statistics.median(mine / one for one, mine in turns)


def memory_of(
    base: BaseModel, make: Callable[[], TrainingSide]
) -> tuple[TrainingSide, Memory | None]:
    """A side, and the device memory that it takes."""
    if base.device.type != "cuda":
        return make(), None
    before = torch.cuda.memory_allocated()
    side = make()
    quietly(side, 1)  # the optimizer's moments are there as well
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    quietly(side, 1)
    weights = sum(it.numel() * it.itemsize for it in base.model.parameters())
    peak = torch.cuda.max_memory_allocated() - allocated
    return side, Memory(weights, allocated - before, peak)


def row(measured: Measured, speed_alone: float) -> tuple[object, ...]:
    def quantile(gaps: Sequence[float], share: float) -> float:
        return float(np.quantile(gaps, share)) * 1e3

    p95 = quantile(measured.training, 0.95) / quantile(measured.alone, 0.95)
    share = statistics.mean(measured.trained) / speed_alone
    met = p95 <= BAR_GAP and share >= BAR_SHARE
    return (
        measured.name,
        *(quantile(measured.alone, share) for share in (0.5, 0.95)),
        *(quantile(measured.training, share) for share in (0.5, 0.95, 0.99)),
        f"{p95:.2f}",
        f"{statistics.mean(measured.alone) / statistics.mean(measured.training):.2f}",
        statistics.mean(measured.trained),
        f"{share:.2f}",
        verdict(met),
    )


def row_text(measured: Measured, speed_alone: float) -> str:
    cells = row(measured, speed_alone)
    return "  ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)


def memory_text(memory: Memory) -> str:
    weights, added, activations = (
        f"{size / 2**20:,.0f} MiB" for size in (memory.weights, memory.added, memory.activations)
    )
    share = memory.added / memory.weights
    return (
        f"weights {weights}; training adds {added}, {share:.1%} of them (bar {BAR_MEMORY:.0%}: "
        f"{verdict(share <= BAR_MEMORY)}), and at most {activations} in a step"
    )


@contextmanager
def engine_of(
    options: argparse.Namespace, folder: Path
) -> Iterator[tuple[BaseModel, Pulse, Streams]]:
    base = base_of(options.shape, options.device)
    store = AdapterStore(folder / "store")
    refs = crowd.publish(store, base, VERA_QV, options.streams)
    adapters = crowd.residents(base, store, [(VERA_QV, options.streams)])
    pulse, context = Pulse(), PROMPT_TOKENS + options.answer_tokens
    with serving(base, adapters, rows=options.streams, context=context, pulse=pulse) as live:
        streams = Streams(live, refs, options.answer_tokens)
        streams.once()
        yield base, pulse, streams


def sides_of(
    options: argparse.Namespace, base: BaseModel, pulse: Pulse, product: TrainingSide
) -> Mapping[str, tuple[str, Callable[[], TrainingSide]]]:
    return {
        "product": (f"gives way, {options.target:g} times", lambda: product),
        "never": (
            "gives way to priority alone",
            partial(Product, base, pulse, endless_work(options), math.inf),
        ),
    }


def listen(options: argparse.Namespace, folder: Path) -> None:
    with engine_of(options, folder) as (base, pulse, streams):
        work = endless_work(options)
        product, memory = memory_of(base, lambda: Product(base, pulse, work, options.target))
        plain = Plain(base, work)
        alone, idle = idle_share(product, plain, options.seconds, options.rounds)
        rows = []
        for key, (name, make) in sides_of(options, base, pulse, product).items():
            if key not in options.sides:
                continue
            measured = Measured(name)
            in_turns(measured, make(), streams, options)
            print(row_text(measured, alone), flush=True)  # should a later side break
            rows.append(row(measured, alone))
    print("\n" + origin() + "\n")
    columns = ("", "p50 alone, ms", "p95", "p50 training", "p95", "p99", "p95 over alone")
    print(table((*columns, "streams' speed", "trained tokens/s", "of alone", "bars"), rows))
    print(f"\ntraining alone: {alone:,.0f} tokens/s")
    print(f"with an idle server: {idle:.2f} of it (bar {BAR_IDLE}: {verdict(idle >= BAR_IDLE)})")
    if memory is not None:
        print(memory_text(memory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=600, help="of one stream")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--times", type=int, default=2, help="streams listened to in a phase")
    parser.add_argument("--warming", type=int, default=2, help="streams before them")
    parser.add_argument("--seconds", type=float, default=4, help="of training by itself")
    parser.add_argument("--target", type=float, default=BAR_GAP)
    parser.add_argument("--judged", action="store_true", help="show what moves the share, and how")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256, help="of one example")
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--targets", nargs="*", default=("q_proj", "v_proj"))
    options = parser.parse_args()
    if options.judged:
        logging.basicConfig(format="%(relativeCreated)d ms: %(message)s")
        logging.getLogger("server.training.colocated.share_controller").setLevel(logging.DEBUG)
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as name:
        listen(options, Path(name))


if __name__ == "__main__":
    main()
