"""How much of the time training may take beside requests. Pure: it is told figures and the time.

A target says how many times as long the time between tokens may become (95th percentile). What it
would be without training is measured: now and then training pauses for some steps, and listens.
Between, its share grows by a little while the target is kept and shrinks by more when it is not,
much as computers share a line; at first it grows fast, until the target is missed once.
"""

from dataclasses import dataclass
from typing import Final

from server.pulse import Reading

LEAST: Final = 0.02  # of the time: training goes on, whatever the target
_STEPS: Final = 64  # of the engine, from which a quantile is taken
_LONGEST_S: Final = 2.0  # of a pause, should the engine take few steps
_GONE_S: Final = 10.0  # without a step: an engine that was killed says for ever that it is busy
_BETWEEN: Final = 24  # stretches of work between two pauses
_QUANTILE: Final = 0.95
_AIM: Final = 0.8  # of what the target leaves: its quantile is over stretches good and bad
_FAST, _MORE, _LESS = 1.5, 1.1, 0.85  # times the share, from one stretch to the next
_SMOOTH: Final = 0.5  # of the last pause in what is known of pauses
_CROWDED: Final = 0.1  # a share below it: smaller passes disturb less for the same work
_ROOMY: Final = 0.6
_PATIENT: Final = 4  # stretches in a row that it takes to change the size of passes
_SMALLEST: Final = 1 / 8


@dataclass
class _Stretch:
    """From where on figures are looked at."""

    since: Reading
    began: float


class Throttle:
    """Decides the share of the time that training works.

    Args:
        target: at least 1; infinite: training does not give way.
    """

    def __init__(self, target: float) -> None:
        self._aim = 1 + _AIM * (target - 1)
        self._busy = False
        self._last_step = (-1, 0.0)  # its number, and when it was seen
        self._allowed = LEAST
        self._more = _FAST
        self._size = 1.0
        self._alone_s: float | None = None  # between tokens, without training
        self._stretch: _Stretch | None = None  # None: nothing was looked at yet
        self._left = 0  # stretches of work until the next pause; 0: it is one
        self._in_a_row = 0  # stretches that were all crowded (negative) or roomy

    @property
    def busy(self) -> bool:
        """Whether requests ran when it last looked."""
        return self._busy

    @property
    def share(self) -> float:
        """0: pause; 1: work as fast as you can."""
        if not self._busy:
            return 1.0
        return self._allowed if self._left else 0.0

    @property
    def grain(self) -> float:
        """Which part of the positions of a forward pass should be run at once: a power of 1/2."""
        return self._size if self._busy else 1.0

    def look(self, reading: Reading, now: float) -> None:
        """Take in what the engine tells, at least some times a second; `now` in seconds."""
        if reading.steps != self._last_step[0] or not reading.running:
            self._last_step = (reading.steps, now)
        self._busy = reading.running > 0 and now - self._last_step[1] < _GONE_S
        if not self._busy:
            return
        if self._stretch is None:
            self._stretch = _Stretch(reading, now)
        steps = reading.steps - self._stretch.since.steps
        late = not self._left and now - self._stretch.began > _LONGEST_S
        if steps < _STEPS and not late:
            return
        gap = reading.quantile(self._stretch.since, _QUANTILE)
        self._stretch = _Stretch(reading, now)
        if self._left:
            self._left -= 1
            self._worked(gap)
        else:
            self._left = _BETWEEN
            self._listened(gap)

    def _listened(self, gap: float | None) -> None:
        if gap is not None:
            known = gap if self._alone_s is None else self._alone_s
            self._alone_s = known + _SMOOTH * (gap - known)

    def _worked(self, gap: float | None) -> None:
        if gap is None or self._alone_s is None:
            return
        if gap > self._aim * self._alone_s:
            self._allowed = max(LEAST, _LESS * self._allowed)
            self._more = _MORE
        else:
            self._allowed = min(1.0, self._more * self._allowed)
        self._resize()

    def _resize(self) -> None:
        if self._allowed < _CROWDED:
            self._in_a_row = min(self._in_a_row, 0) - 1
        elif self._allowed > _ROOMY:
            self._in_a_row = max(self._in_a_row, 0) + 1
        else:
            self._in_a_row = 0
        if abs(self._in_a_row) >= _PATIENT:
            if self._in_a_row < 0:
                self._size = max(_SMALLEST, self._size / 2)
            elif self._size < 1:  # as much work as before, at first
                self._size *= 2
                self._allowed /= 2
            self._in_a_row = 0
