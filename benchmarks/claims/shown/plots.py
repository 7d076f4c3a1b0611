"""The runs as pictures."""

import math
from pathlib import Path
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
        _by_bytes(axes, task, lines)
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


def _by_bytes(axes: Axes, task: str, lines: list[Line]) -> None:
    for line in lines:
        mean, sd = line.headline
        if line.name == "base":
            axes.axhline(mean, color="#777777", ls=":", label="base, zero-shot")
            continue
        family = next((name for name in _COLOURS if line.name.startswith(name)), "")
        variant = line.name != family
        axes.errorbar(
            [line.bytes],
            [mean],
            [sd],
            color=_COLOURS.get(family, "#777777"),
            marker="s" if variant else "o",
            fillstyle="none" if variant else "full",
            ms=5,
            capsize=3,
            ls="none",
            label=line.name,
        )
    axes.set_xscale("log")
    axes.set_title(f"{task}: {HEADLINES[task]}", fontsize=10)
    axes.set_xlabel("bytes at rest", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
