"""What the runs say, as tables: one line per arm, the mean and spread over its seeds."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.claims import grid
from benchmarks.claims.grid import Done
from benchmarks.claims.runs import Run
from benchmarks.support.report import table

E2E_NAMES: Final = ("BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr")
HEADLINES: Final = dict.fromkeys(grid.TASKS, "accuracy") | {"cola": "MCC", "e2e": "BLEU"}
"""The score of each task that stands for it; in percent."""

Scores = Mapping[Run, Mapping[str, float]]
Spread = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One arm on one task, or PEFT's, at its best rate: `losses` on the lines that rates were
    chosen on, and `scores` of the reported ones, of each seed that was run."""

    name: str
    run: Run
    trained: int
    bytes: int
    losses: Sequence[float]
    scores: Sequence[Mapping[str, float]]

    def score(self, name: str) -> Spread:
        """NaN until something was scored."""
        return spread(self.scores_of(name) or [math.nan])

    def scores_of(self, name: str) -> list[float]:
        """Of each seed that was scored."""
        return [scores[name] for scores in self.scores if name in scores]

    @property
    def headline(self) -> Spread:
        return self.score(HEADLINES[self.run.task])


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (0 of a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def line_of(name: str, run: Run, done: Done, scores: Scores) -> Line | None:
    """`run` with every seed that is done; None if there is none."""
    outcomes = [done[each] for seed in grid.SEEDS if (each := run.at(seed=seed)) in done]
    if not outcomes:
        return None
    first = outcomes[0]
    return Line(
        name,
        run,
        first.trained,
        first.bytes,
        [outcome.tune_loss for outcome in outcomes],
        [{**outcome.scores, **scores.get(outcome.run, {})} for outcome in outcomes],
    )


def lines_of(task: str, done: Done, scores: Scores) -> list[Line]:
    """The base, and the arms whose sweep is over."""
    named = [("base", grid.base_run(task))]
    named += [
        (arm.name, best) for arm in grid.arms_of(task, done) if (best := arm.best(done)) is not None
    ]
    found = [line_of(name, run, done, scores) for name, run in named]
    return [line for line in found if line is not None]


def all_tables(done: Done, scores: Scores, speed: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each under a heading of its own."""
    yield f"### All tasks\n\n{summary_table(done, scores)}"
    for task in grid.FIRST:
        yield f"### {task}\n\n{task_table(task, done, scores)}"
    yield f"### Data sets of commonsense\n\n{groups_table(done)}"
    yield f"### PEFT\n\n{peft_table(done, scores)}"
    yield f"### Speed and memory\n\n{speed_table(speed)}"
    yield f"### Rates\n\n{sweep_table(done)}"


def summary_table(done: Done, scores: Scores) -> str:
    """Every method on every task by the headline score."""
    by_arm: dict[tuple[str, int], dict[str, Line]] = {}
    for task in grid.TASKS:
        for line in lines_of(task, done, scores):
            by_arm.setdefault((line.name, line.run.rank), {})[task] = line
    rows = []
    for (name, rank), on in by_arm.items():
        first = next(iter(on.values()))
        cells = [_text(on[task].headline, 1) if task in on else "" for task in grid.TASKS]
        rows.append([name, rank or "", first.trained, first.bytes, *cells])
    heads = [f"{task}, {HEADLINES[task]}" for task in grid.TASKS]
    return table(("", "rank", "trained", "bytes", *heads), rows)


def task_table(task: str, done: Done, scores: Scores) -> str:
    """One task: the rate, the loss that chose it, and all scores."""
    names = {"e2e": E2E_NAMES, "snips": ("accuracy",)}.get(task, ("accuracy", "F1", "MCC"))
    rows = [
        [
            line.name,
            line.run.rank or "",
            line.trained,
            f"{line.run.rate:g}",
            len(line.losses),
            _text(spread(line.losses), 3),
            *(_text(line.score(name), 2 if name in ("NIST", "CIDEr") else 1) for name in names),
        ]
        for line in lines_of(task, done, scores)
    ]
    return table(("", "rank", "trained", "rate", "seeds", "tuning loss", *names), rows)


def groups_table(done: Done) -> str:
    """The commonsense sets one by one."""
    lines = lines_of("commonsense", done, {})
    names = [name for name in (lines[0].scores[0] if lines else {}) if name != "accuracy"]
    rows = [[line.name, *(_text(line.score(name), 1) for name in names)] for line in lines]
    return table(("", *names), rows)


def peft_table(done: Done, scores: Scores) -> str:
    """Both sides' tuning losses and headline scores; the difference of losses in standard errors,
    of three seeds a side."""
    rows = []
    for task in grid.FIRST:
        for arm in (grid.VERA, grid.RANDLORA, grid.LORA):
            best = arm.on(task).best(done)
            ours = best and line_of(arm.name, best, done, scores)
            theirs = best and line_of(arm.name, best.at(side="peft"), done, scores)
            if ours and theirs:
                cells = [_text(spread(line.losses), 3) for line in (ours, theirs)]
                cells += [_text(line.headline, 1) for line in (ours, theirs)]
                rows.append([task, arm.name, *cells, _difference(ours, theirs)])
    columns = ("", "", "loss, ours", "loss, PEFT", "score, ours", "score, PEFT")
    return table((*columns, "loss, ours - PEFT"), rows)


def _difference(ours: Line, theirs: Line) -> str:
    (mean, sd), (other, other_sd) = spread(ours.losses), spread(theirs.losses)
    error = math.sqrt(sd**2 / len(ours.losses) + other_sd**2 / len(theirs.losses))
    errors = f" ({(mean - other) / error:+.1f} s.e.)" if error else ""
    return f"{mean - other:+.3f}{errors}"


def speed_table(speed: Sequence[Mapping[str, Any]]) -> str:
    """Alone on a GPU, and ours over PEFT's by turns."""
    rows: list[list[object]] = []
    for entry in speed:
        run = Run.of(entry["run"])
        options = ", ".join(f"{key} = {value}" for key, value in run.options)
        if "step_ms" in entry:
            cells = [f"{entry['step_ms']:.1f}", f"{entry['peak_mib']:,.0f}", "", ""]
        else:
            ratio, ratios = entry["speed_ratio"], entry["speed_ratios"]
            spoken = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells = ["", "", spoken, f"{entry['memory_ratio']:.2f}"]
        rows.append([run.method, run.rank or "", options, *cells])
    columns = ("", "rank", "options", "ms a step", "peak MiB")
    return table((*columns, "tokens/s over PEFT's", "peak over PEFT's"), rows)


def sweep_table(done: Done) -> str:
    """The tuning loss of each rate with seed 0."""
    tried = [(task, arm, arm.tried(done)) for task in grid.TASKS for arm in _arms(task, done)]
    used = sorted({place for _, _, losses in tried for place in losses})
    rows = [
        [task, arm.name, arm.run.rank or "", *_cells(losses, used)] for task, arm, losses in tried
    ]
    return table(("", "", "rank", *(f"{grid.RATES[place]:g}" for place in used)), rows)


def _arms(task: str, done: Done) -> Iterable[grid.Arm]:
    return (arm for arm in grid.arms_of(task, done) if arm.tried(done))


def _cells(losses: Mapping[int, float], used: Sequence[int]) -> list[str]:
    return [f"{losses[place]:.3f}" if place in losses else "" for place in used]


def _text(value: Spread, digits: int) -> str:
    mean, sd = value
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f} ± {sd:.{digits}f}" if sd else f"{mean:.{digits}f}"
