"""The runs as pictures."""

import math
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.claims import grid
from benchmarks.claims.grid import Done
from benchmarks.claims.shown.tables import HEADLINES, Line, Scores, lines_of

_COLOURS = {
    "full fine-tuning": "#000000",
    "LoRA": "#4477aa",
    "VeRA": "#ee6677",
    "RandLoRA": "#228833",
    "asymmetric": "#aa7700",
}
_MARKS = "os^D"  # a method's variants, in the order of the grid


def draw(done: Done, scores: Scores, folder: Path) -> Path:
    """The headline score of every task over bytes at rest, on a logarithmic scale."""
    shown = {task: lines_of(task, done, scores) for task in grid.TASKS}
    shown = {task: lines for task, lines in shown.items() if len(lines) > 1}
    columns = 3
    count = max(1, math.ceil(len(shown) / columns))
    figure, grids = plt.subplots(
        count, columns, figsize=(11, 3.1 * count), layout="constrained", squeeze=False
    )
    spaces = list(grids.flat)
    for axes in spaces[len(shown) :]:
        axes.set_visible(False)
    for axes, (task, lines) in zip(spaces, shown.items(), strict=False):
        by_bytes(axes, task, lines)
    handles: dict[str, Any] = {}
    for axes in spaces[: len(shown)]:
        marks, names = axes.get_legend_handles_labels()
        handles |= dict(zip(names, marks, strict=True))
    place: Any = "outside lower center"  # newer than the stubs
    figure.legend(handles.values(), handles, loc=place, ncols=4, fontsize=8, frameon=False)
    file = folder / "claims_bytes.png"
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def by_bytes(axes: Axes, task: str, lines: list[Line]) -> None:
    """A mark for each seed. The axis is as long as the methods' middle seeds need: a worse seed is
    an arrow at its lower end with the score beside it, and the base is in the title."""
    seeds = [(line, line.scores_of(HEADLINES[task])) for line in lines if line.name != "base"]
    seeds = [(line, values) for line, values in seeds if values]
    floor = min((median(values) for _, values in seeds), default=0.0)
    top = max((max(values) for _, values in seeds), default=100.0)
    lowest = floor - max(1.0, 0.5 * (top - floor))
    for line, values in seeds:
        colour, mark = _style(line.name)
        style: dict[str, Any] = {"color": colour, "fillstyle": "none"}
        shown = [value for value in values if value >= lowest]
        axes.plot([line.bytes] * len(shown), shown, mark, ms=5, ls="", label=line.name, **style)
        for value in set(values) - set(shown):
            axes.plot([line.bytes], [lowest], "v", ms=6, **style, clip_on=False)
            axes.annotate(f"  {value:.1f}", (line.bytes, lowest), fontsize=8, va="bottom")
    axes.set_ylim(lowest, top + 0.1 * (top - lowest))
    axes.set_xscale("log")
    base = next((line.headline[0] for line in lines if line.name == "base"), math.nan)
    axes.set_title(f"{task}: {HEADLINES[task]} (base {base:.1f})", fontsize=10)
    axes.set_xlabel("bytes at rest", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _style(name: str) -> tuple[str, str]:
    """Colour and mark of an arm."""
    family = next(family for family in _COLOURS if name.startswith(family))
    arms = (*grid.MAIN, *grid.VARIANTS, grid.SPARSEST)
    variants = list(dict.fromkeys(arm.name for arm in arms if arm.name.startswith(family)))
    return _COLOURS[family], _MARKS[variants.index(name)]
