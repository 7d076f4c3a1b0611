"""One decode step, by method and rows: base, one adapter, all distinct, and by Zipf's law.

    python -m benchmarks.steps.decode --shape 8b --device cuda
    python -m benchmarks.steps.decode --shape tiny --rows 1 4 --resident 8 --steps 2 --rounds 2

Steps go through `Runner`, with random weights, keys and values. A time is that of several steps,
from the first launch to the end of the last, divided by their number. The sides take turns. "Over
base" is the median over rounds of the ratio to the base in the same round. "Floor" is the roofline:
see `benchmarks.support.roofline`.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters_store.store import AdapterStore
from benchmarks.support import crowd
from benchmarks.support.bare_engine import BareEngine
from benchmarks.support.base_shapes import SHAPES, base_of
from benchmarks.support.crowd import ASYMMETRIC, LORA, RANDLORA, VERA, VERA_QV, Kind
from benchmarks.support.report import origin, table, verdict
from benchmarks.support.roofline import Chip, measured_chip, step_work

CONTEXT: Final = 256
WARMING: Final = 3  # steps of each side that are not timed
MAIN: Final = (VERA_QV, VERA, LORA)
EXTRA: Final = (ASYMMETRIC, RANDLORA)
BARS_MS: Final = {("8b", 64): 7.0, ("1b", 64): 1.7}
BARS: Final = {VERA_QV: 1.05, VERA: 1.12, LORA: 1.35}  # over base, 64 rows of as many adapters
BAR_RESIDENT = 1.02

COLUMNS: Final = ("rows", "adapters", "load", "ms", "over base", "floor ms", "of floor", "bar")

Adapted = tuple[Kind, int]  # an adapter: the number within its kind


@dataclass(frozen=True)
class Side:
    """One row of the table: the adapter of each row of the batch; None: the base."""

    who: str
    load: str
    adapters: tuple[Adapted | None, ...]

    @property
    def rows(self) -> int:
        return len(self.adapters)


Times = dict[Side, list[float]]
Slots = dict[Adapted, int]


def base_side(rows: int) -> Side:
    return Side("base", "", (None,) * rows)


def sides_of(rows: int, kind: Kind, population: int) -> list[Side]:
    """All rows distinct, all alike, and each drawn by Zipf's law from as many as there are rows."""
    rng = random.Random(rows)
    distinct = rng.sample(range(population), rows)
    skewed = rng.choices(distinct, [1 / (k + 1) for k in range(rows)], k=rows)
    picks = {"distinct": distinct, "one": distinct[:1] * rows, "Zipf": skewed}
    loads = list(picks) if rows > 1 else ["distinct"]
    return [Side(kind.label, load, tuple((kind, n) for n in picks[load])) for load in loads]


def mixed_side(rows: int) -> Side:
    """Every method in turn, and the base; all distinct."""
    turn: tuple[Kind | None, ...] = (None, *MAIN, *EXTRA)
    picked = [turn[row % len(turn)] for row in range(rows)]
    adapters = tuple(None if kind is None else (kind, row) for row, kind in enumerate(picked))
    return Side("all methods", "distinct", adapters)


def populations(rows: Sequence[int], extra_rows: int, resident: int) -> dict[Kind, int]:
    """How many adapters of each kind are needed; `extra_rows` 0: none of `EXTRA`."""
    most = max(rows)
    counts = {VERA_QV: most, VERA: max(resident, most), LORA: most}
    return counts | (dict.fromkeys(EXTRA, extra_rows) if extra_rows else {})


class Turns:
    """Times sides in turn, on one engine."""

    def __init__(self, engine: BareEngine, slots: Slots, steps: int) -> None:
        self._engine = engine
        self._slots = slots
        self._steps = steps

    def times(self, sides: Sequence[Side], rounds: int) -> Times:
        """Seconds of a step, of each side in each round; an untimed round comes first."""
        seconds: Times = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side in sides:
                took = self._time(side, self._steps if number else WARMING)
                if number:
                    seconds[side].append(took)
        return seconds

    def _time(self, side: Side, steps: int) -> float:
        slots = [0 if it is None else self._slots[it] for it in side.adapters]
        sequences = self._engine.sequences(slots, CONTEXT, steps + 1)
        return self._engine.decode_s(sequences, steps)


def ratio(times: Times, side: Side, to: Side) -> float:
    return statistics.median(a / b for a, b in zip(times[side], times[to], strict=True))


def report(engine: BareEngine, chip: Chip, shape: str, times: Times) -> list[tuple[object, ...]]:
    """Rows of the table; the first side is the base."""
    base = next(iter(times))
    rows: list[tuple[object, ...]] = []
    for side, seconds in times.items():
        adapted = [it for it in side.adapters if it is not None]
        work = step_work(engine.base, side.rows, side.rows * CONTEXT, side.rows, adapted)
        ms = statistics.median(seconds) * 1e3
        over = ratio(times, side, base)
        floor = chip.seconds(work) * 1e3
        bar = bar_text(shape, side, ms, over)
        rows.append((side.rows, side.who, side.load, ms, f"{over:.3f}", floor, ms / floor, bar))
    return rows


def bar_text(shape: str, side: Side, ms: float, over: float) -> str:
    if side.who == "base":
        bar = BARS_MS.get((shape, side.rows))
        return "" if bar is None else f"{bar:g} ms: {verdict(ms <= bar)}"
    first = side.adapters[0]
    if shape not in ("1b", "8b") or side.rows != 64 or side.load != "distinct" or first is None:
        return ""
    bar = BARS.get(first[0])
    return "" if bar is None else f"{bar:g}: {verdict(over <= bar)}"


def residents_report(few: Times, many: Times, resident: int) -> list[tuple[object, ...]]:
    """One adapter alone in memory against the same and all rows distinct among thousands.

    They are measured one after the other, so each is divided by the base of its own rounds.
    """
    base, one = few
    alone = ratio(few, one, base)
    rows: list[tuple[object, ...]] = [(1, one.load, f"{alone:.3f}", "1", "")]
    for side in (it for it in many if it.who == VERA.label and it.load != "Zipf"):
        over = ratio(many, side, next(iter(many)))
        bar = f"{BAR_RESIDENT:g}: {verdict(over / alone <= BAR_RESIDENT)}"
        rows.append((resident, side.load, f"{over:.3f}", f"{over / alone:.3f}", bar))
    return rows


def measure(options: argparse.Namespace, folder: Path) -> None:
    base = base_of(options.shape, options.device)
    chip = measured_chip(base.device, base.dtype)
    most, extra_rows = max(options.rows), max(n for n in options.rows if n <= 64)
    counts = populations(options.rows, extra_rows if options.extra else 0, options.resident)
    store, start = AdapterStore(folder), time.perf_counter()
    refs = {kind: crowd.publish(store, base, kind, count) for kind, count in counts.items()}
    published = time.perf_counter()
    adapters = crowd.residents(base, store, list(counts.items()))
    context = CONTEXT + max(options.steps, WARMING) + 1
    engine = BareEngine.of(base, adapters, rows=most, context=context, plain=options.plain)
    slots: Slots = {(VERA, 0): crowd.acquire(adapters, refs[VERA][:1])[0]}
    turns = Turns(engine, slots, options.steps)
    alone = Side(VERA.label, "one", ((VERA, 0),) * extra_rows)
    few = turns.times([base_side(extra_rows), alone], options.rounds)
    loading = time.perf_counter()
    for kind, of_kind in refs.items():
        slots |= {(kind, n): slot for n, slot in enumerate(crowd.acquire(adapters, of_kind))}
    loaded = time.perf_counter()
    lines, by_rows = [], dict[int, Times]()
    for rows in options.rows:
        sides = [base_side(rows)]
        for kind in MAIN:
            sides += sides_of(rows, kind, counts[kind])
        if rows == extra_rows and options.extra:
            sides += [sides_of(rows, kind, counts[kind])[0] for kind in EXTRA]
            sides.append(mixed_side(rows))
        by_rows[rows] = turns.times(sides, options.rounds)
        lines += report(engine, chip, options.shape, by_rows[rows])
    adapters.close()
    print(origin())
    how = "the plain path, " if options.plain else ""
    print(f"\n{options.shape}, {how}{base.dtype}, {CONTEXT} tokens of context; {chip.about()}")
    print(
        f"engine started in {engine.start_s:.1f} s; {sum(counts.values()):,} adapters published in "
        f"{published - start:.1f} s, in their slots in {loaded - loading:.1f} s\n"
    )
    print(table(COLUMNS, lines))
    compared = residents_report(few, by_rows[extra_rows], counts[VERA])
    print(f"\n{VERA.label}, {extra_rows} rows:\n")
    print(table(("resident", "rows", "over base", "over one of one", "bar"), compared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--resident", type=int, default=2000, help="VeRA adapters in memory")
    parser.add_argument("--steps", type=int, default=20, help="timed at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="without kernels and graphs")
    parser.add_argument(
        "--extra",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="asymmetric LoRA and RandLoRA as well, of which 64 at 8b are 15 GB",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
