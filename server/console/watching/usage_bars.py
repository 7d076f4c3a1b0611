"""Stacked bars as SVG rectangles: one bar for each hour or day."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HEIGHT: Final = 100.0
_WIDTH: Final = 10.0  # of a bar, with the gap behind it
_GAP: Final = 2.0


@dataclass(frozen=True)
class Series:
    """One value for each bar; `look` is the class that colours it."""

    name: str
    look: str
    values: Sequence[int]


@dataclass(frozen=True)
class Part:
    """A rectangle of a bar."""

    look: str
    y: float
    height: float


@dataclass(frozen=True)
class Bar:
    """A bar from the left edge `x`; `told` says its values in words."""

    x: float
    parts: Sequence[Part]
    told: str


@dataclass(frozen=True)
class Bars:
    """A drawing of `width` by `HEIGHT`. `most` is the value at its top."""

    width: float
    bar_width: float
    most: int
    bars: Sequence[Bar]


def stacked(titles: Sequence[str], series: Sequence[Series]) -> Bars:
    """Bars with these titles, each with the values of all series on top of one another."""
    totals = [sum(each.values[at] for each in series) for at in range(len(titles))]
    most = _round_up(max(totals, default=0))
    bars = [
        Bar(at * _WIDTH, _parts(series, at, most), _told(title, series, at))
        for at, title in enumerate(titles)
    ]
    return Bars(len(titles) * _WIDTH - _GAP, _WIDTH - _GAP, most, bars)


def _parts(series: Sequence[Series], at: int, most: int) -> Sequence[Part]:
    parts, y = [], HEIGHT
    for each in series:
        if height := each.values[at] / most * HEIGHT:
            y -= height
            parts.append(Part(each.look, y, height))
    return parts


def _told(title: str, series: Sequence[Series], at: int) -> str:
    values = [f"{each.name}: {each.values[at]:,}" for each in series if each.values[at]]
    return f"{title}: {', '.join(values) or 'nothing'}"


def _round_up(number: int) -> int:
    """The next number that is easy to read at the top of a scale."""
    if number <= 4:
        return 4
    power: int = 10 ** (len(str(number)) - 1)
    return next(power * by for by in (1, 2, 4, 5, 10) if power * by >= number)
