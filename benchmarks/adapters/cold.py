"""From the store to the first token, and what loading adapters does to other answers.

    python -m benchmarks.adapters.cold --shape 8b --device cuda
    python -m benchmarks.adapters.cold --shape tiny --registered 60 --resident 12 --pairs 3 \\
        --streams 4 --answer-tokens 20 --rounds 1 --per-second 20

Thousands of VeRA adapters of rank 256 on all linears are in the store; as many are resident as fit.
First, short answers of cold and of resident adapters take turns on an idle loop. Then steady
streams are measured three times: alone, with short answers of resident adapters, and with as many
of cold adapters, each of which evicts another. Files are read from the system's cache, so no disk
is measured.
"""

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from benchmarks.support import crowd
from benchmarks.support.base_shapes import SHAPES, base_of
from benchmarks.support.crowd import VERA
from benchmarks.support.live import AnswerTimes, Live, serving
from benchmarks.support.report import origin, table, verdict
from server.adapters.residency import ResidentAdapters

PROMPT_TOKENS: Final = 32
WARMING: Final = 2  # pairs that are not timed
BAR_MS: Final = 10.0  # a cold first token over a warm one, median
BAR_GAPS: Final = 1.2  # p99 of the time between tokens while adapters load, over alone
LOADS: Final = ("alone", "with resident adapters", "with cold adapters")

Row = tuple[object, ...]
Gaps = list[float]


class Refs:
    """Which adapters to ask for. The first `resident` of them were loaded, in their order.

    The first of those are evicted first, so `steady` and `warm` take theirs from the end. `cold`
    gives adapters that were never in memory, then those that were there longest ago.
    """

    def __init__(self, refs: Sequence[AdapterRef], resident: int, streams: int) -> None:
        rest = resident - streams
        self.steady = refs[rest:resident]
        self._warm = itertools.cycle(refs[rest - max(1, resident // 8) : rest])
        self._cold = itertools.cycle(refs[resident:])

    def warm(self) -> AdapterRef:
        return next(self._warm)

    def cold(self) -> AdapterRef:
        return next(self._cold)


def first_tokens(live: Live, refs: Refs, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds to the first token of warm and of cold adapters, in turns on an idle loop."""
    times: dict[Callable[[], AdapterRef], list[float]] = {refs.warm: [], refs.cold: []}
    for number in range(pairs + WARMING):
        for pick, seconds in times.items():
            answer = live.ask_all([pick()], PROMPT_TOKENS, 1)[0]
            if number >= WARMING:
                seconds.append(answer.first_s)
    warm, cold = times.values()
    return warm, cold


class BackgroundRequests:
    """Short answers at a steady rate, sent by a thread while the context is open."""

    def __init__(
        self, live: Live, pick: Callable[[], AdapterRef] | None, per_second: float
    ) -> None:
        self._live = live
        self._pick = pick
        self._pause = 1 / per_second
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._answers: list[AnswerTimes] = []

    def __enter__(self) -> "BackgroundRequests":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for answer in self._answers:
            answer.wait()

    @property
    def firsts(self) -> list[float]:
        """Seconds to the first token of each; after the context has closed."""
        return [answer.first_s for answer in self._answers]

    def _run(self) -> None:
        due = time.perf_counter()
        while self._pick is not None and not self._stop.wait(max(0, due - time.perf_counter())):
            prompt = self._live.prompts(1, PROMPT_TOKENS)[0]
            self._answers.append(self._live.ask(prompt, self._pick(), 4))
            due += self._pause


def gaps_of(answers: Sequence[AnswerTimes]) -> Gaps:
    """Seconds between the tokens of each answer, without the first few, when all begin at once."""
    return [
        after - before
        for answer in answers
        for before, after in itertools.pairwise(answer.times[len(answer.times) // 8 :])
    ]


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def listen(
    live: Live, refs: Refs, options: argparse.Namespace
) -> tuple[dict[str, list[Gaps]], dict[str, list[float]]]:
    """Gaps of the streams in each round, and first tokens of the background answers, by load."""
    picks = dict(zip(LOADS, (None, refs.warm, refs.cold), strict=True))
    gaps: dict[str, list[Gaps]] = {load: [] for load in LOADS}
    firsts: dict[str, list[float]] = {load: [] for load in LOADS}
    live.ask_all(refs.steady, PROMPT_TOKENS, 8)
    for _ in range(options.rounds):
        for load, pick in picks.items():
            with BackgroundRequests(live, pick, options.per_second) as background:
                answers = live.ask_all(refs.steady, PROMPT_TOKENS, options.answer_tokens)
            gaps[load].append(gaps_of(answers))
            firsts[load] += background.firsts
    return gaps, firsts


def gap_rows(gaps: dict[str, list[Gaps]], firsts: dict[str, list[float]]) -> Iterator[Row]:
    for load in LOADS:
        every = [gap * 1e3 for each in gaps[load] for gap in each]
        over = {
            to: statistics.median(
                p99(mine) / p99(theirs) for mine, theirs in zip(gaps[load], gaps[to], strict=True)
            )
            for to in LOADS[:2]
        }
        first = statistics.median(firsts[load]) * 1e3 if firsts[load] else ""
        yield (
            *(load, statistics.median(every), p99(every), max(every)),
            *(f"{over[to]:.2f}" for to in LOADS[:2]),
            *(first, len(firsts[load])),
        )


def bar_text(value: float, bar: float) -> str:
    return f"bar {bar:g}: {verdict(value <= bar)}"


def fill(adapters: ResidentAdapters, refs: Sequence[AdapterRef]) -> float:
    """Make them resident. Returns the milliseconds that one took."""
    start = time.perf_counter()
    crowd.acquire(adapters, refs)
    for ref in refs:
        adapters.release(ref)
    return (time.perf_counter() - start) / len(refs) * 1e3


def measure(options: argparse.Namespace, folder: Path) -> None:
    base = base_of(options.shape, options.device)
    store, start = AdapterStore(folder), time.perf_counter()
    published = crowd.publish(store, base, VERA, options.registered)
    publishing = time.perf_counter() - start
    adapters = crowd.residents(base, store, [(VERA, options.resident)], loader_threads=2)
    filling = fill(adapters, published[: options.resident])
    refs = Refs(published, options.resident, options.streams)
    context = PROMPT_TOKENS + options.answer_tokens
    with serving(base, adapters, rows=2 * options.streams, context=context) as live:
        warm, cold = first_tokens(live, refs, options.pairs)
        before = adapters.evictions
        gaps, firsts = listen(live, refs, options)
        evicted = adapters.evictions - before
    if before != len(cold) + WARMING or evicted != len(firsts[LOADS[-1]]):
        raise ValueError("cold adapters were in memory, or warm ones not: raise --resident")
    more = (statistics.median(cold) - statistics.median(warm)) * 1e3
    print(origin())
    print(
        f"\n{options.shape}, {base.dtype}, {VERA.label}: {len(published):,} registered in "
        f"{publishing:.1f} s, {adapters.slots:,} resident, {filling:.1f} ms to load one of many; "
        f"{evicted:,} came and left during the streams, {options.per_second:g} a second\n"
    )
    rows: list[Row] = [
        ("warm", statistics.median(warm) * 1e3, p99(warm) * 1e3, "", ""),
        (
            *("cold", statistics.median(cold) * 1e3, p99(cold) * 1e3),
            *(f"{more:.2f}", bar_text(more, BAR_MS)),
        ),
    ]
    print(table(("first token", "median ms", "p99 ms", "more", ""), rows))
    print(f"\n{options.streams} streams, time between tokens:\n")
    lines = list(gap_rows(gaps, firsts))
    columns = ("", "median ms", "p99 ms", "max ms", "p99 over alone", "over resident")
    print(table((*columns, "their first token, ms", "of"), lines))
    for to, value in zip(LOADS[:2], lines[-1][4:6], strict=True):
        print(f"\np99 {LOADS[-1]} over {to}: {value}, {bar_text(float(str(value)), BAR_GAPS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--registered", type=int, default=10_000)
    parser.add_argument("--resident", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=100, help="of warm and cold first tokens")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=400, help="of one stream")
    parser.add_argument("--per-second", type=float, default=40, help="background answers")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
