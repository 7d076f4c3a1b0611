"""Draws an analysis. Imported only for a picture, because matplotlib is an extra."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clients.python.analysis_result import Analysis, Comparison, LayerSimilarity, SpaceSimilarity
from server.cli.display import grids

FORMATS: Final = ("png", "svg", "pdf")

_COLUMNS = 3
_MAX_NUMBERS = 150  # a panel with more cells has no room for their figures
_DPI = 110


@dataclass(frozen=True)
class _Panel:
    """One heat map. `limits` None: from zero to the largest figure."""

    grid: grids.Grid
    title: str
    unit: str
    colours: str = "viridis"
    limits: tuple[float, float] | None = None
    show: Callable[[float | None], str] = grids.shown


def draw(analysis: Analysis, file: Path) -> None:
    """Heat maps of layers by modules, and the spectra, in the one of `FORMATS` that `file` names.

    Raises:
        OSError: the file cannot be written.
    """
    own = list(_own_panels(analysis))
    comparison = analysis.comparison
    compared = list(_comparison_panels(analysis.id, comparison)) if comparison else []
    rows = len(own) // _COLUMNS + 1 + bool(compared)
    height = min(max(3.2, 0.27 * len(own[0].grid.layers) + 1.4), 9)
    figure = Figure(figsize=(15, height * rows + 0.6), layout="constrained")
    cells = figure.add_gridspec(rows, _COLUMNS)
    for index, panel in enumerate(own):
        _heat(figure, figure.add_subplot(cells[divmod(index, _COLUMNS)]), panel)
    row, column = divmod(len(own), _COLUMNS)
    _spectra(figure.add_subplot(cells[row, column:]), analysis)
    for index, panel in enumerate(compared):
        _heat(figure, figure.add_subplot(cells[rows - 1, index]), panel)
    figure.suptitle(_headline(analysis), fontsize=14)
    figure.savefig(file, dpi=_DPI)


def _headline(analysis: Analysis) -> str:
    share = grids.shown(grids.percent(analysis.relative_norm))
    return (
        f"{analysis.id}: {analysis.method}, rank {analysis.rank}, "
        f"all updates together {share} % of the weights"
    )


def _own_panels(analysis: Analysis) -> Iterator[_Panel]:
    for measure in grids.vectors_of(analysis).values():
        title = measure.title.removesuffix(", RMS")
        grid = grids.grid_of(analysis.layers, measure.of)
        yield _Panel(grid, title, "RMS, in the unit that is trained", "magma")
    relative = grids.grid_of(analysis.layers, grids.MEASURES["relative-norm"].of)
    yield _Panel(relative, "size of the update relative to its weight", "||dW|| / ||W||, %")
    stable = grids.grid_of(analysis.layers, grids.MEASURES["stable-rank"].of)
    unit = "||dW||² / ||dW||₂², directions"
    yield _Panel(stable, "stable rank of the update", unit, "cividis")


def _comparison_panels(name: str, comparison: Comparison) -> Iterator[_Panel]:
    layers = comparison.layers
    if not layers:
        return
    pair = f"{name} and {comparison.id}"
    yield _spaces(f"{pair}: spaces written to", layers, lambda layer: layer.left)
    yield _spaces(f"{pair}: spaces read from", layers, lambda layer: layer.right)
    cosine = grids.grid_of(layers, lambda layer: layer.cosine)
    most = max(*(abs(end) for end in grids.span(cosine)), 0.1)
    yield _Panel(
        cosine, f"{pair}: the updates", "cosine", "RdBu_r", (-most, most), grids.hundredths
    )


def _spaces(
    title: str,
    layers: Sequence[LayerSimilarity],
    side: Callable[[LayerSimilarity], SpaceSimilarity],
) -> _Panel:
    grid = grids.grid_of(layers, lambda layer: side(layer).similarity)
    chances = grids.grid_of(layers, lambda layer: side(layer).chance).columns
    with_random = grids.Grid(
        (*grid.layers, "random"), grid.modules, (*grid.rows, tuple(grids.mean(c) for c in chances))
    )
    return _Panel(
        with_random,
        title,
        "similarity of the singular spaces",
        limits=(0, 1),
        show=grids.hundredths,
    )


def _heat(figure: Figure, axes: Axes, panel: _Panel) -> None:
    grid = panel.grid
    low, high = panel.limits or (0.0, grids.span(grid)[1] or 1.0)
    cells = np.array(grid.rows, dtype=float)  # None becomes not a number, and stays white
    image = axes.imshow(cells, aspect="auto", cmap=panel.colours, vmin=low, vmax=high)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xticks(range(len(grid.modules)), grid.modules, rotation=30, ha="right", fontsize=9)
    axes.set_ylabel("layer")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(grid.layers) <= 40:
        axes.set_yticks(range(len(grid.layers)), grid.layers, fontsize=9)
    figure.colorbar(image, ax=axes, label=panel.unit, shrink=0.9)
    if len(grid.layers) * len(grid.modules) > _MAX_NUMBERS:
        return
    light = image.to_rgba(cells)[..., :3].sum(-1) > 1.5
    for i, row in enumerate(grid.rows):
        for j, value in enumerate(row):
            if value is not None:
                ink = "black" if light[i, j] else "white"
                axes.text(j, i, panel.show(value), ha="center", va="center", color=ink, fontsize=8)


def _spectra(axes: Axes, analysis: Analysis) -> None:
    """A line for each module: the median over its layers, on a band of their range."""
    modules = list(dict.fromkeys(layer.module for layer in analysis.layers))
    for module, name in zip(modules, grids.short_names(modules), strict=True):
        shapes = [
            [value / layer.spectral_norm for value in layer.singular_values]
            for layer in analysis.layers
            if layer.module == module and layer.spectral_norm
        ]
        places = list(zip(*shapes, strict=False))
        if not places:
            continue
        numbers = range(1, len(places) + 1)
        (line,) = axes.plot(numbers, [median(place) for place in places], label=name)
        lows, highs = [min(place) for place in places], [max(place) for place in places]
        axes.fill_between(numbers, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_title("spectrum of the update: median over the layers, and their range", fontsize=11)
    axes.set_xlabel("singular value, by size")
    axes.set_ylabel("share of the largest")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=9, ncols=2)
