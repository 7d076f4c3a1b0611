"""What the runs say, as tables: one line per arm, the mean and spread over its seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.e2e import e2e_grid as grid
from benchmarks.e2e.e2e_grid import Arm, Done
from benchmarks.e2e.runs import Run
from benchmarks.support.report import table

NAMES = ("BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr")
SIZES = {"61 thousand": (57e3, 63e3), "94 thousand": (93e3, 96e3), "240 thousand": (236e3, 249e3)}
_WORTH = 0.1  # nats: a rate is too near the edge if the next one up loses as much

Scores = Mapping[Run, Mapping[str, float]]
Spread = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One arm, or PEFT's, at its best rate: `losses` and `scores` of each seed that was run."""

    name: str
    run: Run
    trained: int
    bytes: int
    losses: Sequence[float]
    scores: Sequence[Mapping[str, float]]

    def score(self, name: str) -> Spread:
        """NaN until something was scored."""
        return spread([scores[name] for scores in self.scores] or [math.nan])


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (0 of a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def line_of(name: str, run: Run, done: Done, scores: Scores) -> Line:
    """`run` with every seed that is done."""
    runs = [run.at(seed=seed) for seed in grid.SEEDS]
    outcomes = [done[each] for each in runs if each in done]
    first = outcomes[0]
    return Line(
        name,
        run,
        first.trained,
        first.bytes,
        [outcome.valid_loss for outcome in outcomes],
        [scores[outcome.run] for outcome in outcomes if outcome.run in scores],
    )


def lines(arms: Iterable[Arm], done: Done, scores: Scores) -> list[Line]:
    """Of those arms whose sweep is over."""
    best = [(arm, arm.best(done)) for arm in arms]
    return [line_of(arm.name, run, done, scores) for arm, run in best if run is not None]


def main_table(done: Done, scores: Scores, speed: Sequence[Mapping[str, Any]]) -> str:
    """Every method. Time is the median step's, alone on its GPU, times the steps of the run."""
    alone = {_shape(Run.of(entry["run"])): entry for entry in speed if "step_ms" in entry}
    rows = []
    for line in lines(grid.main_arms(done), done, scores):
        pace = alone.get(_shape(line.run))
        seconds = pace["step_ms"] * done[line.run].steps / 1e3 if pace else math.nan
        rows.append(
            [
                line.name,
                line.run.rank or "",
                line.trained,
                line.bytes,
                f"{line.run.rate:g}",
                _text(spread(line.losses), 3),
                *_scores(line),
                f"{seconds:.1f}",
                f"{pace['peak_mib'] if pace else math.nan:,.0f}",
            ]
        )
    columns = ("", "rank", "trained", "bytes", "rate", "valid loss", *NAMES, "s", "peak MiB")
    return table(columns, rows)


def matched_table(done: Done, scores: Scores) -> str:
    """Equal counts of trained numbers."""
    arms = lines([*grid.main_arms(done), *grid.matched_arms(done)], done, scores)
    rows = []
    for size, (low, high) in SIZES.items():
        inside = [line for line in arms if low <= line.trained <= high]
        inside = [line for line in inside if "s = " not in line.name]
        for line in sorted(inside, key=lambda line: spread(line.losses)[0]):
            loss = _text(spread(line.losses), 3)
            rows.append([size, line.name, line.run.rank, line.trained, loss, *_scores(line)])
    return table(("about", "", "rank", "trained", "valid loss", *NAMES), rows)


def peft_table(done: Done, scores: Scores) -> str:
    """Validation loss of both sides, seed by seed; the difference in standard errors."""
    rows = []
    randlora = grid.randlora_arm(done)
    for name, arm in (("VeRA", grid.VERA), ("RandLoRA", randlora), ("LoRA", grid.LORA)):
        best = arm.best(done) if arm else None
        if best is None:
            continue
        ours = line_of(name, best, done, scores)
        theirs = line_of(name, best.at(side="peft"), done, scores)
        (mean, sd), (their_mean, their_sd) = spread(ours.losses), spread(theirs.losses)
        error = math.sqrt((sd**2 + their_sd**2) / len(grid.SEEDS))
        seeds = [", ".join(f"{loss:.4f}" for loss in line.losses) for line in (ours, theirs)]
        difference = f"{mean - their_mean:+.4f} ({(mean - their_mean) / error:+.1f} s.e.)"
        bleu = [f"{line.score('BLEU')[0]:.1f}" for line in (ours, theirs)]
        rows.append([name, best.rank, *seeds, difference, " / ".join(bleu)])
    columns = ("", "rank", "ours, seeds 0 to 2", "PEFT", "ours - PEFT", "BLEU, ours / PEFT")
    return table(columns, rows)


def speed_table(speed: Sequence[Mapping[str, Any]]) -> str:
    """Ours over PEFT's: tokens per second (range over rounds), and peak memory."""
    rows = []
    for entry in speed:
        if "speed_ratio" not in entry:
            continue
        run, ratios = Run.of(entry["run"]), entry["speed_ratios"]
        launch = "replayed" if entry["replayed"] else "started one by one"
        paces = " / ".join(f"{entry[side]['tokens_per_s'] / 1e3:,.0f}" for side in ("ours", "peft"))
        ratio = f"{entry['speed_ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        memory = f"{entry['memory_ratio']:.2f}"
        rows.append([run.method, run.rank, run.dtype, run.batch, launch, paces, ratio, memory])
    columns = ("", "rank", "dtype", "batch", "kernels", "1,000 tokens/s, ours / PEFT")
    return table((*columns, "speed ratio", "memory ratio"), rows)


def sweep_table(done: Done) -> str:
    """Validation loss of each rate with seed 0."""
    arms = [*grid.main_arms(done), *grid.matched_arms(done)]
    dense = grid.randlora_arm(done)
    starts = [arm for arm in grid.STARTS if arm != dense]
    tried = [(arm, arm.tried(done)) for arm in (*arms, *starts)]
    used = sorted({place for _, losses in tried for place in losses})
    rows = []
    for arm, losses in tried:
        cells = [f"{losses[place]:.3f}" if place in losses else "" for place in used]
        rows.append([f"{arm.name}{_start(arm.run)}", arm.run.rank or "", *cells])
    return table(("", "rank", *(f"{grid.RATES[place]:g}" for place in used)), rows)


def defaults(done: Done) -> list[dict[str, Any]]:
    """What to begin with: the best rate, or half a decade less where the next one up loses 0.1."""
    recommendations = []
    for arm in dict.fromkeys([*grid.main_arms(done), *grid.STARTS]):
        best = arm.best(done)
        if best is None:
            continue
        tried, place = arm.tried(done), grid.RATES.index(best.rate)
        near_edge = tried.get(place + 1, math.inf) > tried[place] + _WORTH
        recommended = place - 1 if near_edge else place
        recommendations.append(
            {
                "name": arm.name,
                "method": best.method,
                "rank": best.rank,
                "options": dict(best.options),
                "best_rate": best.rate,
                "best_loss": tried[place],
                "recommended_rate": grid.RATES[recommended],
                "recommended_loss": tried.get(recommended),
                "by_rate": {f"{grid.RATES[i]:g}": loss for i, loss in sorted(tried.items())},
            }
        )
    return recommendations


def _start(run: Run) -> str:
    options = dict(run.options)
    if run.method != "randlora" or "sparsity" in options:
        return ""
    scale, gamma = float(options["alpha"]) / run.rank, math.log2(float(options["gamma_initial"]))
    return f", scale {scale:g}, gamma 2^{gamma:.0f}"


def _shape(run: Run) -> tuple[str, str, int, tuple[tuple[str, str | float], ...]]:
    """What the speed and memory of a run depend on."""
    still = [pair for pair in run.options if pair[0] not in ("alpha", "gamma_initial")]
    return run.side, run.method, run.rank, tuple(still)


def _scores(line: Line) -> list[str]:
    digits = {"BLEU": 1, "NIST": 2, "METEOR": 1, "ROUGE-L": 1, "CIDEr": 2}
    return [_text(line.score(name), digits[name]) if line.scores else "" for name in NAMES]


def _text(value: Spread, digits: int) -> str:
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"
