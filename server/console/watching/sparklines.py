"""Small curves of the last minutes, as SVG paths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from server.api.history import EVERY_S, MOST_MOMENTS

WIDTH: Final = 120.0
HEIGHT: Final = 30.0
MINUTES: Final = round(MOST_MOMENTS * EVERY_S / 60)


@dataclass(frozen=True)
class Sparkline:
    """A line, and the area below it, in a box of `WIDTH` by `HEIGHT`. `most` is its largest value,
    or what fills the box."""

    line: str
    area: str
    most: float


def sparkline(values: Sequence[float], most: float = 0.0) -> Sparkline | None:
    """A curve that ends at the right, where now is. None: there are no two values yet.

    Args:
        most: the value at the top of the box; 0: the largest there is.
    """
    if len(values) < 2:
        return None
    most = most or max(values)
    step = WIDTH / (MOST_MOMENTS - 1)
    left = WIDTH - step * (len(values) - 1)
    room = HEIGHT - 2  # so that no half of a line is cut off
    heights = (min(value / most, 1.0) if most else 0.0 for value in values)
    points = [
        f"{left + step * at:.1f} {HEIGHT - 1 - room * height:.1f}"
        for at, height in enumerate(heights)
    ]
    line = "M" + "L".join(points)
    return Sparkline(line, f"{line}L{WIDTH:g} {HEIGHT:g}L{left:.1f} {HEIGHT:g}Z", most)
