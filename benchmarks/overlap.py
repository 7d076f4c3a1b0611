"""What overlapping launches is worth in whole steps: `python -m benchmarks.overlap`, on CUDA.

    python -m benchmarks.overlap --shape 8b --variants off early ahead8 own16 later all8

Each variant sets `server.adapters.kernels.overlap`'s switches and captures its steps anew; sides
take turns within it. A variant computes the same sums in the same order: its logits must be those
of the first variant to the bit, which the last column says. "over base" is over the base of the
same variant, "over off" over the same side of the first one.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass
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

_MIB = 2**20


@dataclass(frozen=True)
class Variant:
    """The switches: by name, in MiB where they are bytes."""

    name: str
    early: bool = False
    ahead: int = 0
    own: int = 0
    later: bool = False

    @classmethod
    def named(cls, name: str) -> "Variant":
        """`early+ahead8+own16+later`, any of them; `off`."""
        told: dict[str, int] = {}
        for word in name.split("+"):
            switch = word.rstrip("0123456789")
            if switch not in ("off", "early", "ahead", "own", "later"):
                raise SystemExit(f"{word!r} is no switch: early, ahead8, own16, later, or off")
            told[switch] = int(word[len(switch) :] or 1)
        return cls(
            name, bool(told.get("early")), told.get("ahead", 0), told.get("own", 0),
            bool(told.get("later")),
        )  # fmt: skip

    def apply(self) -> None:
        overlap.EARLY = self.early
        overlap.AHEAD_BYTES = self.ahead * _MIB
        overlap.OWN_BYTES = self.own * _MIB
        overlap.LATER = self.later


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

    def run(self, variant: Variant, rounds: int) -> tuple[dict[Side, list[float]], list[Tensor]]:
        """Seconds of each side, and the logits of each one's last step."""
        variant.apply()
        self._captures._kept.clear()
        # torch gives a pool up with the last of its graphs.
        self._captures._pool = torch.cuda.graph_pool_handle()
        self._captures._pool = torch.cuda.graph_pool_handle()  # torch gives up one without graphs
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
    parser.add_argument("--variants", nargs="+", default=["off", "early", "ahead8", "own16+later"])
    options = parser.parse_args()
    variants = [Variant.named(name) for name in options.variants]
    print(origin(), flush=True)
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        trial = Trial(options, Path(folder))
        first, expected = trial.run(variants[0], options.rounds)
        for variant in variants:
            times, logits = trial.run(variant, options.rounds)
            lines = [
                (
                    variant.name, side.who, side.load, statistics.median(times[side]) * 1e3,
                    f"{ratio(times, side, trial.sides[0]):.3f}",
                    statistics.median(times[side]) / statistics.median(first[side]),
                    "same" if bool((found == wanted).all()) else "OTHER",
                )
                for side, found, wanted in zip(trial.sides, logits, expected, strict=True)
            ]  # fmt: skip
            columns = ("variant", "adapters", "load", "ms", "over base", "over off", "logits")
            print(table(columns, lines), flush=True)
        trial.adapters.close()


if __name__ == "__main__":
    main()
