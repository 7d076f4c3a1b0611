"""What came of a cohort as a line of JSON, and the study's tables. Knows no torch."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.support.report import table
from benchmarks.training.study_grid import RATES, SEEDS, Cohort

CHOOSE_LOSS, CHOOSE_EXACT, LOSS, EXACT = range(4)
"""The places in a score: two on the lines that choose, two on those that are reported."""


@dataclass(frozen=True)
class RunResult:
    """One run: its score after each epoch. A curve that is too short diverged."""

    rate: float
    seed: int
    curve: list[list[float]]


@dataclass(frozen=True)
class CohortResult:
    """All runs of a cohort. `untrained` holds the base's own score on each seed's fresh lines,
    `tokens` those that a run read, and `seconds` the time of all runs together."""

    cohort: Cohort
    steps: int
    tokens: int
    seconds: float
    untrained: list[list[float]]
    runs: list[RunResult]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read back what `asdict` gave, through JSON."""
        runs = [RunResult(**run) for run in record["runs"]]
        return cls(**{**record, "cohort": Cohort.of(record["cohort"]), "runs": runs})

    def mean(self, rate: float, place: int) -> float:
        """The mean over the seeds of a final score; infinite if a run diverged."""
        ends = [
            run.curve[-1][place] if len(run.curve) == self.cohort.reading.epochs else math.inf
            for run in self.runs
            if run.rate == rate
        ]
        return sum(ends) / len(ends)

    def best_rate(self) -> float:
        """The one whose loss is lowest on the lines that choose."""
        return min(RATES[self.cohort.method], key=lambda rate: _known(self.mean(rate, CHOOSE_LOSS)))


def results_in(paths: Iterable[Path]) -> list[CohortResult]:
    """What these files hold; one that does not exist holds nothing."""
    lines = [
        line for path in paths if path.exists() for line in path.read_text().splitlines() if line
    ]
    return [CohortResult.of(json.loads(line)) for line in lines]


def report(results: Sequence[CohortResult]) -> str:
    """One table for each base and method: the loss and right answers of each rate."""
    kinds = dict.fromkeys((it.cohort.base, it.cohort.method) for it in results)
    parts = []
    for base, method in sorted(kinds):
        chosen = [it for it in results if (it.cohort.base, it.cohort.method) == (base, method)]
        parts += [f"{base}, {method}", _table(method, chosen)]
    return "\n\n".join(parts)


def _table(method: str, results: Sequence[CohortResult]) -> str:
    columns = ["lines", "epochs x batch", "steps", "base"]
    columns += [f"{rate:g}" for rate in RATES[method]]
    ordered = sorted(
        results, key=lambda it: (it.cohort.reading.source, it.cohort.reading.lines, it.steps)
    )
    return table(columns, [_row(result) for result in ordered])


def _row(result: CohortResult) -> list[object]:
    reading, best = result.cohort.reading, result.best_rate()
    base = sum(score[LOSS] for score in result.untrained) / len(SEEDS)
    source = f"{reading.source} {reading.lines}" + (" opened" if result.cohort.opening else "")
    cells: list[object] = [source, f"{reading.epochs} x {reading.batch}", result.steps, base]
    for rate in RATES[result.cohort.method]:
        text = f"{result.mean(rate, LOSS):.2f}, {result.mean(rate, EXACT):.0%}"
        cells.append(f"**{text}**" if rate == best else text)
    return cells


def _known(value: float) -> float:
    return math.inf if math.isnan(value) else value
