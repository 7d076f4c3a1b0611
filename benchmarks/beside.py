"""Training on the GPU that serves: what it costs the answers, and what is left of its speed.

    python -m benchmarks.beside --shape 1b --device cuda
    python -m benchmarks.beside --shape tiny --streams 4 --answer-tokens 60 --rank 8 --tokens 24 \\
        --seconds 1 --rounds 1

Steady streams with VeRA adapters are listened to, alone and beside one job that trains (VeRA on q
and v), in turns. The job trains in each of the ways that `benchmarks.ways` knows.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from benchmarks import crowd
from benchmarks.cold import gaps_of
from benchmarks.crowd import VERA_QV
from benchmarks.live import Heard, Live, serving
from benchmarks.report import origin, table
from benchmarks.shapes import SHAPES, base_of
from benchmarks.ways import (
    HIGH,
    Apart,
    Between,
    Interleaved,
    InThread,
    Job,
    Marks,
    Memory,
    Way,
    twin,
)
from server.bases.lending import Lender, Weights
from server.pulse import Pulse, PulseReader
from server.scheduler.loop import Stepper
from server.training.giving_way import GivingWay
from server.training.throttle import Throttle

PROMPT_TOKENS: Final = 128
BAR_GAP, BAR_KEPT, BAR_IDLE, BAR_MEMORY = 1.3, 0.4, 0.95, 0.15
EVERY, BURST = 24, 32  # less than a twentieth of the steps wait, for about a step of training
WAYS: Final = (
    "apart",
    "gives way",
    "thread",
    "thread gives way",
    "interleaved",
    "bursts",
    "own sms",
)


@dataclass
class Found:
    """Of one way: seconds between tokens, alone and beside; tokens a second of training."""

    name: str
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)


class Streams:
    """One stream for each adapter, all at once, again and again."""

    def __init__(self, live: Live, refs: Sequence[AdapterRef], answer_tokens: int) -> None:
        self._ask = partial(live.ask_all, refs, PROMPT_TOKENS, answer_tokens)

    def once(self) -> list[Heard]:
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
    found: Found, way: Way, streams: Streams, rounds: int, *, warming: int, times: int
) -> None:
    """Streams alone, then beside training, `warming` of which is not looked at."""
    for _ in range(rounds):
        found.alone += streams.gaps(times)
        way.start()
        try:
            for _ in range(warming):
                streams.once()
            begin = time.perf_counter()
            found.beside += streams.gaps(times)
            end = time.perf_counter()
        finally:
            marks = way.stop()
        found.trained.append(trained_per_s(marks, begin, end))


def quietly(way: Way, seconds: float) -> float:
    """Tokens a second of training while nobody asks anything: the median of five stretches."""
    way.start()
    time.sleep(seconds * 1.25)
    marks = way.stop()
    times = np.linspace(marks[-1][0] - seconds, marks[-1][0], 6)
    return statistics.median(trained_per_s(marks, *ends) for ends in itertools.pairwise(times))


class Bench:
    """A loop that serves, and what ways to train beside it need."""

    def __init__(self, options: argparse.Namespace, live: Live, refs: Sequence[AdapterRef]) -> None:
        self.options = options
        self.streams = Streams(live, refs, options.answer_tokens)
        self.speed_alone = 0.0
        self.speed_idle = 0.0
        self.memory: Memory | None = None
        self.found: list[Found] = []

    def listen(self, name: str, way: Way) -> None:
        found = Found(name)
        options = self.options
        in_turns(
            found, way, self.streams, options.rounds, warming=options.warming, times=options.times
        )
        self.found.append(found)
        print(row_text(found, self.speed_alone), flush=True)  # should a later way break


def apart(bench: Bench, folder: Path, weights: Weights, job: Job) -> None:
    """A process of its own: without control, then with."""
    options = bench.options
    way = Apart(folder / "socket", options.shape, job, weights.bytes)
    bench.memory = way.memory
    bench.speed_alone = quietly(way, options.seconds)
    if "apart" in options.ways:
        bench.listen("a process, time-sliced", way)
    way.give_way(folder / "pulse")
    bench.speed_idle = quietly(way, options.seconds)
    if "gives way" in options.ways:
        bench.listen("a process that gives way", way)
    for share in options.shares:
        way.give_way(folder / "pulse", share)
        bench.listen(f"a process, {share:.0%} of the time", way)
    way.end()


def within(bench: Bench, folder: Path, weights: Weights, job: Job, between: Between) -> None:
    """The ways of the engine's own process. One that fails says so, and the next is tried."""
    shape = bench.options.shape

    def giving() -> GivingWay:
        return GivingWay(Throttle(job.target), PulseReader(folder / "pulse"))

    made: dict[str, tuple[str, Callable[[], Way]]] = {
        "thread": (
            "a thread, low priority",
            lambda: InThread(twin(weights, shape), between, job),
        ),
        "thread gives way": (
            "a thread, low priority, that gives way",
            lambda: InThread(twin(weights, shape), between, job, giving()),
        ),
        "bursts": (
            f"{BURST} layers before every {EVERY}th step",
            lambda: Interleaved(
                twin(weights, shape),
                between,
                job,
                PulseReader(folder / "pulse"),
                every=EVERY,
                layers=BURST,
            ),
        ),
        "interleaved": (
            "a layer before each step",
            lambda: Interleaved(twin(weights, shape), between, job, PulseReader(folder / "pulse")),
        ),
        "own sms": (
            f"a thread on {bench.options.sms} multiprocessors",
            lambda: InThread(twin(weights, shape), between, job, multiprocessors=bench.options.sms),
        ),
    }
    for key in bench.options.ways:
        if key in made:
            name, make = made[key]
            try:
                bench.listen(name, make())
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)


def row(found: Found, speed_alone: float) -> tuple[object, ...]:
    def quantile(gaps: Sequence[float], share: float) -> float:
        return float(np.quantile(gaps, share)) * 1e3

    p95 = quantile(found.beside, 0.95) / quantile(found.alone, 0.95)
    kept = statistics.mean(found.trained) / speed_alone
    met = p95 <= BAR_GAP and kept >= BAR_KEPT
    return (
        found.name,
        *(quantile(found.alone, share) for share in (0.5, 0.95)),
        *(quantile(found.beside, share) for share in (0.5, 0.95, 0.99)),
        f"{p95:.2f}",
        f"{statistics.mean(found.alone) / statistics.mean(found.beside):.2f}",
        statistics.mean(found.trained),
        f"{kept:.2f}",
        "met" if met else "MISSED",
    )


def row_text(found: Found, speed_alone: float) -> str:
    cells = row(found, speed_alone)
    return "  ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)


def memory_text(memory: Memory) -> str:
    parts = asdict(memory)
    mib = {name: f"{size / 2**20:,.0f} MiB" for name, size in parts.items()}
    added = (memory.borrowed + memory.job) / memory.weights
    whole = added + memory.context / memory.weights
    return (
        f"weights {mib['weights']}; the worker adds {mib['borrowed']} to open them, {mib['job']} "
        f"for matrices and the job, {mib['context']} for CUDA itself, and at most "
        f"{mib['activations']} of activations in a step:\n{added:.1%} of the weights without "
        f"CUDA's, {whole:.1%} with it (bar {BAR_MEMORY:.0%}, activations apart)"
    )


def _high(plain: type[torch.cuda.Stream]) -> Callable[..., torch.cuda.Stream]:
    def stream(*given: Any, **told: Any) -> torch.cuda.Stream:
        named = told if "stream_id" in told else {"priority": HIGH, **told}
        made: torch.cuda.Stream = plain(*given, **named)
        return made

    return stream


@contextmanager
def bench_of(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Bench, Weights, Between]]:
    base = base_of(options.shape, options.device)
    store = AdapterStore(folder / "store")
    refs = crowd.publish(store, base, VERA_QV, options.streams)
    adapters = crowd.residents(base, store, [(VERA_QV, options.streams)])
    made: list[Between] = []

    def through(engine: Stepper) -> Stepper:
        made.append(Between(engine))
        return made[-1]

    # Nodes of a graph keep the priority of the stream that they were captured on.
    high: AbstractContextManager[object] = nullcontext()
    if options.device == "cuda":
        high = mock.patch.object(torch.cuda, "Stream", _high(torch.cuda.Stream))
    context = PROMPT_TOKENS + options.answer_tokens
    with high:
        server = serving(
            base,
            adapters,
            rows=options.streams,
            context=context,
            pulse=Pulse(folder / "pulse"),
            through=through,
        )
        live = server.__enter__()
    try:
        weights = Weights.of(base, options.shape)
        lender = Lender(weights, folder / "socket")
        bench = Bench(options, live, refs)
        bench.streams.once()
        yield bench, weights, made[0]
        lender.close()
    finally:
        server.__exit__(None, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=600, help="of one stream")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--times", type=int, default=2, help="streams listened to in a phase")
    parser.add_argument("--warming", type=int, default=2, help="streams before them")
    parser.add_argument("--seconds", type=float, default=4, help="of training by itself")
    parser.add_argument("--target", type=float, default=BAR_GAP)
    parser.add_argument("--shares", type=float, nargs="*", default=(), help="fixed ones, as well")
    parser.add_argument("--sms", type=int, default=32)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256, help="of one example")
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--targets", nargs="*", default=("q_proj", "v_proj"))
    options = parser.parse_args()
    torch.multiprocessing.set_sharing_strategy("file_system")
    job = Job.of(options, options.target)
    with (
        tempfile.TemporaryDirectory(dir=crowd.scratch()) as name,
        bench_of(options, Path(name)) as (bench, weights, between),
    ):
        try:
            apart(bench, Path(name), weights, job)
        except Exception as error:  # handles of memory may not open everywhere
            print(f"a process of its own: {type(error).__name__}: {error}", flush=True)
        if not bench.speed_alone:
            alone = InThread(twin(weights, options.shape), between, job)
            bench.speed_alone = quietly(alone, options.seconds)
        within(bench, Path(name), weights, job, between)
    print("\n" + origin() + "\n")
    columns = ("", "p50 alone, ms", "p95", "p50 beside", "p95", "p99", "p95 over alone")
    rows = [row(found, bench.speed_alone) for found in bench.found]
    print(table((*columns, "streams' speed", "trained tokens/s", "of alone", "bars"), rows))
    idle = bench.speed_idle / bench.speed_alone
    print(
        f"\ntraining alone: {bench.speed_alone:,.0f} tokens/s; that gives way, beside an idle "
        f"server: {bench.speed_idle:,.0f}, {idle:.2f} of it (bar {BAR_IDLE}: "
        f"{'met' if idle >= BAR_IDLE else 'MISSED'})"
    )
    if bench.memory is not None:
        print(memory_text(bench.memory))


if __name__ == "__main__":
    main()
