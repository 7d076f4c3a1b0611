"""Arranges figures of a model's linears: a row for each layer, a column for each module."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from clients.python.analysis_result import Analysis, LayerAnalysis, LinearRecord


@dataclass(frozen=True)
class Measure:
    """One figure of a linear, its title, and its short head for a column."""

    title: str
    head: str
    of: Callable[[LayerAnalysis], float | None]


def percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * ratio


MEASURES: Final[Mapping[str, Measure]] = {
    "relative-norm": Measure(
        "size of the update relative to its weight, ||dW|| / ||W||, %",
        "% of W",
        lambda layer: percent(layer.relative_norm),
    ),
    "norm": Measure("size of the update, ||dW||", "norm", lambda layer: layer.norm),
    "spectral-norm": Measure(
        "largest singular value, ||dW||_2", "2-norm", lambda layer: layer.spectral_norm
    ),
    "stable-rank": Measure(
        "stable rank, ||dW||^2 / ||dW||_2^2", "stable rank", lambda layer: layer.stable_rank
    ),
    "effective-rank": Measure(
        "effective rank, exp(entropy)", "eff. rank", lambda layer: layer.effective_rank
    ),
    "numerical-rank": Measure("rank in float64", "rank", lambda layer: layer.numerical_rank),
}


def vectors_of(analysis: Analysis) -> dict[str, Measure]:
    """The trained vectors by name: how far each has moved, or its size if its start is unknown."""
    names = dict.fromkeys(name for layer in analysis.layers for name in layer.trained)
    return {name: _moved(analysis, name) for name in names}


def _moved(analysis: Analysis, name: str) -> Measure:
    vectors = [layer.trained[name] for layer in analysis.layers if name in layer.trained]
    known = all(vector.moved is not None for vector in vectors)

    def of(layer: LayerAnalysis) -> float | None:
        vector = layer.trained.get(name)
        return None if vector is None else vector.moved if known else vector.rms

    if known:
        return Measure(f"how far {name} has moved, RMS", f"{name} moved", of)
    return Measure(f"how large {name} is, RMS", f"{name} RMS", of)


def shown(value: float | None) -> str:
    """Three significant digits; whole and large numbers without a fraction."""
    if value is None:
        return "-"
    if isinstance(value, int) or 999.5 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    if value == 0 or 0.001 <= abs(value) < 999.5:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:.1e}"


def hundredths(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"  # without a minus before zero


Item = TypeVar("Item", bound=LinearRecord)


@dataclass(frozen=True)
class Grid:
    """`rows[i][j]` belongs to layer i and module j; None: there is no figure."""

    layers: tuple[str, ...]
    modules: tuple[str, ...]
    rows: tuple[tuple[float | None, ...], ...]

    @property
    def columns(self) -> tuple[tuple[float | None, ...], ...]:
        return tuple(zip(*self.rows, strict=True))


def grid_of(items: Iterable[Item], value: Callable[[Item], float | None]) -> Grid:
    """Layers by number, modules in the order of the model."""
    items = list(items)
    layers = sorted({item.layer for item in items}, key=lambda layer: (layer is None, layer))
    modules = list(dict.fromkeys(item.module for item in items))
    figures = {(item.layer, item.module): value(item) for item in items}
    return Grid(
        tuple("-" if layer is None else str(layer) for layer in layers),
        short_names(modules),
        tuple(tuple(figures.get((layer, module)) for module in modules) for layer in layers),
    )


def short_names(modules: Iterable[str]) -> tuple[str, ...]:
    """The last part of each name, unless two share it."""
    modules = list(modules)
    last = [module.rpartition(".")[2] for module in modules]
    shared = Counter(last)
    return tuple(
        module if shared[name] > 1 else name for module, name in zip(modules, last, strict=True)
    )


def span(grid: Grid) -> tuple[float, float]:
    """The smallest and the largest figure; zeros where there is none."""
    figures = [figure for row in grid.rows for figure in row if figure is not None]
    return (min(figures), max(figures)) if figures else (0.0, 0.0)


def mean(figures: Iterable[float | None]) -> float | None:
    """The mean of the figures that are not None."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) / len(known) if known else None
