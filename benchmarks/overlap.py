"""What it is worth in whole steps that kernels begin early: `python -m benchmarks.overlap` (CUDA).

Steps are captured with `server.adapters.kernels.overlap`'s switch off, on, and both once more;
sides take turns within each. "over base" is over the base of the same capture, "over off" over the
same side with the switch off. The sums are the same in the same order, so logits should be those
of the first capture: the last column is the largest difference over their spread.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from adapters_store.store import AdapterStore
from benchmarks import crowd
from benchmarks.crowd import LORA, VERA, VERA_QV
from benchmarks.decode import CONTEXT, Side, Slots, Turns, base_side, ratio, sides_of
from benchmarks.engine import Engine
from benchmarks.report import origin, table
from benchmarks.shapes import SHAPES, base_of
from server.adapters.kernels import overlap
from server.engine.captures import Captures


class Trial:
    """An engine without graphs captured ahead, and the sides that are timed on it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        base = base_of(options.shape, "cuda")
        kinds = {VERA_QV: options.rows, VERA: options.rows, LORA: options.rows}
        store = AdapterStore(folder)
        refs = {kind: crowd.publish(store, base, kind, count) for kind, count in kinds.items()}
        self.adapters = crowd.residents(base, store, list(kinds.items()))
        context = CONTEXT + options.steps + 8
        self.engine = Engine.of(
            base, self.adapters, rows=options.rows, context=context, ahead=False
        )  # fmt: skip
        slots: Slots = {}
        for kind, found in refs.items():
            slots |= {(kind, n): at for n, at in enumerate(crowd.acquire(self.adapters, found))}
        self.turns = Turns(self.engine, slots, options.steps)
        self.sides = [base_side(options.rows)]
        for kind in kinds:
            self.sides += [
                side for side in sides_of(options.rows, kind, options.rows) if side.load != "Zipf"
            ]
        self._captures: Captures = self.engine.runner._forward._decodes._captures  # type: ignore
        self._kept = self._captures._kept

    def run(self, early: int, rounds: int) -> tuple[dict[Side, list[float]], list[Tensor]]:
        """Seconds of each side, and the logits of each one's last step."""
        overlap.EARLY = early
        self._captures._kept.clear()
        # torch gives a pool up with the last of its graphs.
        self._captures._pool = torch.cuda.graph_pool_handle()
        times = self.turns.times(self.sides, rounds)
        logits = []
        for side in self.sides:
            self.turns.times([side], 1)
            logits.append(next(reversed(self._captures._kept.values())).logits.clone())
        return times, logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--early", type=int, nargs="+", default=[0, 1, 0, 1])
    options = parser.parse_args()
    print(origin(), flush=True)
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        trial = Trial(options, Path(folder))
        runs = [(early, *trial.run(early, options.rounds)) for early in options.early]
        trial.adapters.close()
    _, first, expected = runs[0]
    lines = [
        (
            early, side.who, side.load,
            statistics.median(times[side]) * 1e3, f"{ratio(times, side, trial.sides[0]):.3f}",
            f"{statistics.median(times[side]) / statistics.median(first[side]):.3f}",
            f"{float((found - wanted).float().abs().max() / wanted.float().std()):.2g}",
        )
        for early, times, logits in runs
        for side, found, wanted in zip(trial.sides, logits, expected, strict=True)
    ]  # fmt: skip
    columns = ("early", "adapters", "load", "ms", "over base", "over off", "difference")
    print(table(columns, lines), flush=True)


if __name__ == "__main__":
    main()
