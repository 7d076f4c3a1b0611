"""How fast a learner trains and what memory it takes, alone on its GPU; and two by turns."""

import gc
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.claims import grid
from benchmarks.claims.data.rows import Encoded
from benchmarks.claims.learning.learners import build
from benchmarks.claims.learning.steps import Steps
from benchmarks.claims.runs import Run
from server.training.run.examples import Example

_WARM_STEPS = 3  # from the third step of a shape on, recordings are replayed
_STEPS = 10  # of one round
_MIB = 2**20

_MEASURED = (*grid.MAIN, grid.ASYM_B, grid.ASYM_A, grid.SPARSE, grid.UNIQUE, *grid.SMALL)
_RATE = 1e-6  # the result does not matter here
ALONE: Sequence[Run] = [arm.on("e2e").run.at(rate=_RATE) for arm in _MEASURED]
PAIRED: Sequence[Run] = [
    arm.on("e2e").run.at(rate=_RATE) for arm in (grid.VERA, grid.RANDLORA, grid.LORA)
]


@dataclass(frozen=True)
class Pace:
    """Medians over rounds. `peak_mib` is all that torch held at once, the model among it."""

    step_ms: float
    tokens_per_s: float
    peak_mib: float


class _Timed:
    """One learner, and the steps that it takes; see `Steps` for what `replayed` means."""

    def __init__(self, run: Run, base: str, rows: Encoded, device: str, *, replayed: bool) -> None:
        self._stream = torch.cuda.Stream() if replayed else None
        self._device = torch.device(device)
        with self._streaming():
            self._steps = Steps(build(run, base, device), rows, run, self._stream)
            for _ in range(_WARM_STEPS):
                self._steps.take()

    def round(self) -> tuple[float, int]:
        """Seconds and tokens of some steps; the GPU has nothing else to do meanwhile."""
        with self._streaming():
            self._wait()
            start, before = time.perf_counter(), self._steps.num_tokens
            for _ in range(_STEPS):
                self._steps.take()
            self._wait()
            return time.perf_counter() - start, self._steps.num_tokens - before

    def peak_mib(self) -> float:
        """The most memory that a round takes."""
        if self._device.type != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        self.round()
        return torch.cuda.max_memory_allocated() / _MIB

    def _streaming(self) -> AbstractContextManager[None]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def one_batch(rows: Encoded, run: Run) -> Encoded:
    """As many rows as a batch has, of middling length, so that all steps have one shape."""
    middle = np.argsort(rows.lengths, kind="stable")[len(rows) // 2 :][: run.batch]
    examples = []
    for row in middle.tolist():
        tokens = rows.tokens[rows.starts[row] : rows.starts[row + 1]].tolist()
        example = Example.of(tokens, [(int(rows.prompts[row]), len(tokens))])
        assert example is not None
        examples.append(example)
    return Encoded.of(examples)


def alone(run: Run, base: str, rows: Encoded, device: str, rounds: int) -> Pace:
    """One learner with the GPU to itself: memory of plain steps, time of replayed ones."""
    rows = one_batch(rows, run)
    peak = _peak_mib(run, base, rows, device)
    timed = _Timed(run, base, rows, device, replayed=device == "cuda")
    pace = _pace([timed.round() for _ in range(rounds)], peak)
    del timed
    _free()
    return pace


def by_turns(run: Run, base: str, rows: Encoded, device: str, rounds: int) -> dict[str, Any]:
    """Ours and PEFT's: memory one after the other, speed in alternating rounds of one process.

    `speed_ratio` is the median over rounds of our tokens/s over PEFT's of the next round.
    """
    rows = one_batch(rows, run)
    runs = {"ours": run, "peft": run.at(side="peft")}
    peaks = {side: _peak_mib(each, base, rows, device) for side, each in runs.items()}
    timed = {
        side: _Timed(each, base, rows, device, replayed=device == "cuda")
        for side, each in runs.items()
    }
    timings: dict[str, list[tuple[float, int]]] = {"ours": [], "peft": []}
    for number in range(rounds):
        for side in ("ours", "peft") if number % 2 else ("peft", "ours"):
            timings[side].append(timed[side].round())
    del timed
    _free()
    ratios = [
        (ours[1] / ours[0]) / (theirs[1] / theirs[0])
        for ours, theirs in zip(timings["ours"], timings["peft"], strict=True)
    ]
    return {
        "run": asdict(run),
        "ours": asdict(_pace(timings["ours"], peaks["ours"])),
        "peft": asdict(_pace(timings["peft"], peaks["peft"])),
        "speed_ratio": statistics.median(ratios),
        "speed_ratios": [round(ratio, 3) for ratio in ratios],
        "memory_ratio": peaks["ours"] / max(peaks["peft"], 1e-9),
    }


def _peak_mib(run: Run, base: str, rows: Encoded, device: str) -> float:
    peak = _Timed(run, base, rows, device, replayed=False).peak_mib()
    _free()
    return peak


def _pace(rounds: Sequence[tuple[float, int]], peak_mib: float) -> Pace:
    return Pace(
        step_ms=statistics.median(seconds for seconds, _ in rounds) / _STEPS * 1e3,
        tokens_per_s=statistics.median(tokens / seconds for seconds, tokens in rounds),
        peak_mib=peak_mib,
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
