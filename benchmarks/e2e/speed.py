"""How fast a learner trains and what memory it takes, alone on its GPU; and two by turns."""

import gc
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.e2e import e2e_grid as grid
from benchmarks.e2e.e2e_data import Splits
from benchmarks.e2e.e2e_steps import Steps
from benchmarks.e2e.learners import build
from benchmarks.e2e.runs import Run

_WARM_STEPS = 12
_WARM_REPLAYED = 80  # until nearly every shape has been recorded
_STEPS = 20  # of one round
_MIB = 2**20

RANDLORA = grid.STARTS[0].run
_VERA = (grid.VERA, grid.UNIQUE, grid.D_ONLY, grid.B_ONLY)
ALONE: Sequence[Run] = (
    *(arm.run for arm in (grid.FULL, grid.LORA, *_VERA, grid.ASYM_B, grid.ASYM_A)),
    RANDLORA,
    *(RANDLORA.at(options=(*RANDLORA.options, ("sparsity", s))) for s in grid.SPARSE.values()),
)
PAIRED: Sequence[Run] = (grid.VERA.run, RANDLORA, grid.LORA.run)
_RATE = 1e-5  # the result does not matter here


@dataclass(frozen=True)
class Pace:
    """Medians over rounds. `peak_mib` is all that torch held at once, the model among it."""

    step_ms: float
    tokens_per_s: float
    peak_mib: float


class _Timed:
    """One learner, and the steps that it takes; see `Steps` for what `replayed` means."""

    def __init__(self, run: Run, splits: Splits, device: str, *, replayed: bool) -> None:
        self._stream = torch.cuda.Stream() if replayed else None
        self._device = torch.device(device)
        with self._streaming():
            learner = build(run, "porch", device)
            self._steps = Steps(learner, splits.train, run.at(rate=_RATE), self._stream)
            for _ in range(_WARM_REPLAYED if replayed else _WARM_STEPS):
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


def alone(run: Run, splits: Splits, device: str, rounds: int) -> Pace:
    """One learner with the GPU to itself: memory of plain steps, time of replayed ones."""
    peak = _peak_mib(run, splits, device)
    timed = _Timed(run, splits, device, replayed=device == "cuda")
    pace = _pace([timed.round() for _ in range(rounds)], peak)
    del timed
    _free()
    return pace


def by_turns(
    run: Run, splits: Splits, device: str, rounds: int, *, replayed: bool
) -> dict[str, Any]:
    """Ours and PEFT's: memory one after the other, speed in alternating rounds of one process.

    `speed_ratio` is the median over rounds of our tokens/s over PEFT's of the next round.
    """
    runs = {"ours": run, "peft": run.at(side="peft")}
    peaks = {side: _peak_mib(each, splits, device) for side, each in runs.items()}
    timed = {side: _Timed(each, splits, device, replayed=replayed) for side, each in runs.items()}
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
        "replayed": replayed,
        "ours": asdict(_pace(timings["ours"], peaks["ours"])),
        "peft": asdict(_pace(timings["peft"], peaks["peft"])),
        "speed_ratio": statistics.median(ratios),
        "speed_ratios": [round(ratio, 3) for ratio in ratios],
        "memory_ratio": peaks["ours"] / max(peaks["peft"], 1e-9),
    }


def _peak_mib(run: Run, splits: Splits, device: str) -> float:
    peak = _Timed(run, splits, device, replayed=False).peak_mib()
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
