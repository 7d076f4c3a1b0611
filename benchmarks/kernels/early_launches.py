"""The gain of kernels that begin early: `python -m benchmarks.kernels.early_launches`.

Needs CUDA. Steps are captured with the switch of `server.kernels.dependent_launch` off twice, then
on twice; sides take turns within each capture. "Over base" is over the base of the same capture,
"over off" over the same side of the first capture. All do the same sums in the same order, so from
the same keys and values their logits must equal those of the first capture. "First" and "later" are
the largest difference over the logits' spread, after one step and after many, each of which feeds
its tokens to the next.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from adapters_store.store import AdapterStore
from benchmarks.steps.decode import CONTEXT, Side, Slots, Times, Turns, base_side, ratio, sides_of
from benchmarks.support import crowd
from benchmarks.support.bare_engine import BareEngine
from benchmarks.support.base_shapes import SHAPES, base_of
from benchmarks.support.crowd import LORA, VERA, VERA_QV
from benchmarks.support.report import origin, table
from server.engine.fused.graph_cache import GraphCache
from server.kernels import dependent_launch


class Trial:
    """An engine without graphs captured ahead, and the sides that are timed on it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        base = base_of(options.shape, "cuda")
        kinds = {VERA_QV: options.rows, VERA: options.rows, LORA: options.rows}
        store = AdapterStore(folder)
        refs = {kind: crowd.publish(store, base, kind, count) for kind, count in kinds.items()}
        self.adapters = crowd.residents(base, store, list(kinds.items()))
        context = CONTEXT + options.steps + 8
        self.engine = BareEngine.of(
            base, self.adapters, rows=options.rows, context=context, ahead=False
        )  # fmt: skip
        self._slots: Slots = {}
        for kind, adapters in refs.items():
            slots = crowd.acquire(self.adapters, adapters)
            self._slots |= {(kind, number): slot for number, slot in enumerate(slots)}
        self._steps = options.steps
        self.sides = [base_side(options.rows)]
        for kind in kinds:
            self.sides += [
                side for side in sides_of(options.rows, kind, options.rows) if side.load != "Zipf"
            ]
        self._graphs: GraphCache = self.engine.runner._forward._decodes._graphs  # type: ignore
        self._kv = [(it, it.clone()) for layer in self.engine.kv.layers for it in layer]

    def run(self, early: bool, rounds: int) -> tuple[Times, list[list[Tensor]]]:
        """Seconds of each side, and the logits of its first step and of a later one."""
        dependent_launch.EARLY = early
        self._graphs._cache._entries.clear()
        # torch gives a pool up with the last of its graphs.
        self._graphs._pool = torch.cuda.graph_pool_handle()
        times = Turns(self.engine, self._slots, self._steps).times(self.sides, rounds)
        return times, [[self._logits(it, steps) for steps in (1, self._steps)] for it in self.sides]

    def _logits(self, side: Side, steps: int) -> Tensor:
        """Of the last of so many steps, from the keys and values that were there at first."""
        for memory, before in self._kv:
            memory.copy_(before)
        slots = [0 if it is None else self._slots[it] for it in side.adapters]
        self.engine.decode_s(self.engine.sequences(slots, CONTEXT, self._steps + 1), steps)
        captured = next(reversed(self._graphs._cache._entries.values()))
        return captured.logits.clone()


def differing(logits: Tensor, expected: Tensor) -> str:
    return f"{float((logits - expected).float().abs().max() / expected.float().std()):.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(origin(), flush=True)
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        trial = Trial(options, Path(folder))
        switched = (False, False, True, True)
        runs = [(early, *trial.run(early, options.rounds)) for early in switched]
        trial.adapters.close()
    _, first, of_first = runs[0]
    lines = [
        (
            "on" if early else "off", side.who, side.load,
            statistics.median(times[side]) * 1e3, f"{ratio(times, side, trial.sides[0]):.3f}",
            f"{statistics.median(times[side]) / statistics.median(first[side]):.3f}",
            *(differing(*pair) for pair in zip(logits, expected, strict=True)),
        )
        for early, times, of_sides in runs
        for side, logits, expected in zip(trial.sides, of_sides, of_first, strict=True)
    ]  # fmt: skip
    columns = ("early", "adapters", "load", "ms", "over base", "over off", "first", "later")
    print(table(columns, lines), flush=True)


if __name__ == "__main__":
    main()
