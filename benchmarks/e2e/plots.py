"""The runs as pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.e2e import e2e_grid as grid
from benchmarks.e2e.e2e_grid import Done
from benchmarks.e2e.e2e_report import Line, Scores, line_of, lines, spread

_COLOURS = {
    "LoRA": "#4477aa",
    "VeRA": "#ee6677",
    "RandLoRA": "#228833",
    "asymmetric, B trained": "#aa7700",
    "asymmetric, A trained": "#999999",
}
_LOSS = "validation loss, nats per token"


def draw(done: Done, scores: Scores, folder: Path) -> list[Path]:
    """All of them, as PNG."""
    figures = {
        "e2e_size.png": by_size(done, scores),
        "e2e_vera_ranks.png": vera_ranks(done, scores),
        "e2e_variants.png": variants(done, scores),
        "e2e_rates.png": rates(done),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
        plt.close(figure)
    return [folder / name for name in figures]


def by_size(done: Done, scores: Scores) -> Figure:
    """Loss and BLEU against trained parameters, by method."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    arm_lines = lines([*grid.main_arms(done), *grid.matched_arms(done)], done, scores)
    for family, colour in _COLOURS.items():
        inside = sorted(_family(arm_lines, family), key=lambda line: line.trained)
        trained = [line.trained for line in inside]
        for axes, values in (
            (left, [spread(line.losses) for line in inside]),
            (right, [line.score("BLEU") for line in inside]),
        ):
            means, errors = zip(*values, strict=True)
            axes.errorbar(
                trained, means, errors, color=colour, marker="o", ms=5, capsize=3, label=family
            )
    full = next(line for line in arm_lines if line.name == grid.FULL.name)
    for axes, value in ((left, spread(full.losses)[0]), (right, full.score("BLEU")[0])):
        axes.axhline(value, color="black", ls="--", lw=1, label="full fine-tuning, 17.3 million")
        axes.set_xscale("log")
        axes.set_xlabel("trained parameters")
        axes.set_xticks([40e3, 60e3, 100e3, 250e3], ["40k", "60k", "100k", "250k"])
        axes.minorticks_off()
    left.set_ylabel(_LOSS)
    right.set_ylabel("BLEU, test set")
    handles, labels = left.get_legend_handles_labels()
    place: Any = "outside lower center"  # newer than the stubs
    figure.legend(handles, labels, loc=place, ncols=3, fontsize=8, frameon=False)
    _finish(figure, "E2E NLG on Porch: mean and standard deviation over three seeds")
    return figure


def vera_ranks(done: Done, scores: Scores) -> Figure:
    """VeRA from rank 1 to 1024: every seed that was run, and LoRA to compare."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    best, lora = grid.VERA.best(done), grid.LORA.best(done)
    assert best is not None and lora is not None
    arm_lines = [line_of("", best.at(rank=rank), done, scores) for rank in grid.RANKS]
    compared = {
        f"LoRA, rank {rank}": line_of("", lora.at(rank=rank), done, scores) for rank in (1, 4)
    }
    for axes, values, score in (
        (left, [line.losses for line in arm_lines], lambda line: spread(line.losses)[0]),
        (
            right,
            [[s["BLEU"] for s in line.scores] or [math.nan] for line in arm_lines],
            lambda line: line.score("BLEU")[0],
        ),
    ):
        for rank, each in zip(grid.RANKS, values, strict=True):
            axes.plot([rank] * len(each), each, "o", color=_COLOURS["VeRA"], ms=4, alpha=0.6)
        means = [spread(each)[0] for each in values]
        axes.plot(grid.RANKS, means, color=_COLOURS["VeRA"], label="VeRA")
        for (name, line), style in zip(compared.items(), (":", "--"), strict=True):
            label = f"{name} ({line.trained / 1e3:.0f}k trained)"
            axes.axhline(score(line), color=_COLOURS["LoRA"], ls=style, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(grid.RANKS, [str(rank) for rank in grid.RANKS], fontsize=8)
        axes.set_xlabel("rank of VeRA")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + (high - low) / 30)
        above = axes.secondary_xaxis("top")
        above.set_xticks(
            grid.RANKS[::2], [f"{line.trained / 1e3:.1f}k" for line in arm_lines[::2]], fontsize=8
        )
        above.minorticks_off()
        above.set_xlabel("parameters that VeRA trains", fontsize=8)
    left.set_ylabel(_LOSS)
    right.set_ylabel("BLEU, test set")
    left.legend(fontsize=8, frameon=False)
    _finish(figure, "VeRA by rank, one dot a seed")
    return figure


def variants(done: Done, scores: Scores) -> Figure:
    """Each variant next to its neighbours, and PEFT's next to ours: one dot a seed."""
    arm_lines = {line.name: line for line in lines(grid.main_arms(done), done, scores)}
    groups: dict[str, dict[str, Line]] = {
        "VeRA, rank 256": {
            "shared bases": arm_lines[grid.VERA.name],
            "PEFT": _theirs(arm_lines[grid.VERA.name], done, scores),
            "unique bases": arm_lines["VeRA, unique bases"],
            "b only": arm_lines["VeRA, b only"],
            "d only": arm_lines["VeRA, d only"],
        },
        "RandLoRA, rank 32": {
            "dense": arm_lines["RandLoRA"],
            "PEFT, dense": _theirs(arm_lines["RandLoRA"], done, scores),
            "s = 3": arm_lines["RandLoRA, s = 3"],
            "s = 6": arm_lines["RandLoRA, s = 6"],
            "s = √D": arm_lines["RandLoRA, s = sqrt(D)"],
        },
        "low rank, about 240k": {
            "LoRA, rank 4": arm_lines["LoRA"],
            "PEFT, rank 4": _theirs(arm_lines["LoRA"], done, scores),
            "B trained, rank 8": arm_lines[grid.ASYM_B.name],
            "A trained, rank 8": arm_lines[grid.ASYM_A.name],
        },
    }
    figure, all_axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    for axes, (title, members) in zip(all_axes, groups.items(), strict=True):
        for place, (name, line) in enumerate(members.items()):
            colour = "#777777" if "PEFT" in name else "#4477aa"
            offsets = [place + 0.12 * (number - 1) for number in range(len(line.losses))]
            axes.plot(offsets, line.losses, "o", color=colour, ms=5)
            mean = spread(line.losses)[0]
            axes.plot([place - 0.3, place + 0.3], [mean, mean], color=colour, lw=1)
        axes.set_xticks(range(len(members)), list(members), rotation=25, ha="right", fontsize=8)
        axes.set_title(title, fontsize=10)
    all_axes[0].set_ylabel(_LOSS)
    _finish(figure, "One dot a seed; PEFT's in grey")
    return figure


def rates(done: Done) -> Figure:
    """The sweeps: loss against learning rate with seed 0."""
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    dense = grid.randlora_arm(done)
    for arm in grid.main_arms(done):
        if "s = " in arm.name or "unique" in arm.name:
            continue
        tried = sorted(arm.tried(done).items())
        colour = _COLOURS.get(arm.name)
        style = "--" if "only" in arm.name else "-"
        colour = _COLOURS["VeRA"] if "only" in arm.name else colour or "black"
        marker = "s" if arm.name.endswith("d only") else "o"
        _sweep(axes, tried, label=arm.name, color=colour, ls=style, marker=marker)
    if dense:
        axes.set_ylim(0.92, 1.45)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel(_LOSS)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _finish(figure, "Learning rates, seed 0; cut at 1.45")
    return figure


def _sweep(axes: Axes, tried: Sequence[tuple[int, float]], *, label: str, **look: str) -> None:
    places = [grid.RATES[place] for place, _ in tried]
    axes.plot(places, [loss for _, loss in tried], label=label, ms=4, **look)  # type: ignore[arg-type]


def _theirs(line: Line, done: Done, scores: Scores) -> Line:
    return line_of("PEFT", line.run.at(side="peft"), done, scores)


def _family(arm_lines: Sequence[Line], family: str) -> list[Line]:
    """Of a method as it is, whatever its size: no variant of it."""
    return [line for line in arm_lines if line.name in (family, f"{family}, five of seven linears")]


def _finish(figure: Figure, title: str) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
