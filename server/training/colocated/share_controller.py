"""Decide what share of the time training may take while requests run. Pure.

The target says how many times as long the time between tokens may become (95th percentile). Its
length without training is measured in short pauses of training, for each load separately. Several
pauses count together: the time between tokens grows with the answers, and one long pause would
measure one moment of it. Each stretch of work from pause to pause is compared with the target. The
share moves by how far it is off, on a logarithmic scale, so that noise up and down cancels out. The
share begins at the whole time, with a reserve that some misses use up before there is any rest. It
does not change while no requests run.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from server.pulse import Reading, quantile

log = logging.getLogger(__name__)

LEAST_SHARE: Final = 0.03  # of the time: fewer than one token in twenty waits for it
_QUANTILE: Final = 0.95
_WORK_S, _WORK_STEPS = 0.2, 48  # the least of a stretch of work, in time and in engine steps
_PAUSE_S, _PAUSE_STEPS = 0.02, 16  # the least of a pause
_LEFT_STEPS: Final = 2  # at the start of a pause: launched while training still worked
_FIRST_PAUSE: Final = 6  # times as long, for a load that was not measured before
_LONGEST_PAUSE_S: Final = 2.0  # should the engine take few steps
_PAUSE_APART: Final = 20  # times the length of a pause, until the next
_FADING: Final = 0.9  # weight of the older measurements, from one pause to the next
_GAIN: Final = 0.6  # of the way to the share that would just meet the target
_RESERVE: Final = 2.0  # a share above 1 is as good as 1, and takes longer to fall below
_FAR: Final = 2.0  # times above the target twice in a row: no noise, so go all of the way
_FARTHEST: Final = 8.0  # times above or below: a stretch farther off counts as this far
_LEAST_SLOWDOWN: Final = 0.01  # above a target of 1, which leaves nothing to divide by
_OTHER_LOAD: Final = 1.5  # times the answers with which a stretch began
_IDLE_S: Final = 0.5  # without `look`: nothing trained


@dataclass(frozen=True)
class _Stretch:
    """A time of work, or a pause, over which the time between tokens is measured."""

    since: Reading
    began: float
    pause: bool = False
    times: int = 1  # as long as such stretches are
    settled: bool = True  # whether the steps launched before it began are over

    def over(self, reading: Reading, now: float) -> bool:
        took, steps = now - self.began, reading.steps - self.since.steps
        if self.pause and took > _LONGEST_PAUSE_S:
            return True
        if self.pause:
            return steps >= self.times * _PAUSE_STEPS and took >= self.times * _PAUSE_S
        return steps >= _WORK_STEPS and took >= _WORK_S

    def of_another_load(self, reading: Reading) -> bool:
        loads = self.since.running, reading.running
        return max(loads) > _OTHER_LOAD * min(loads)


class ShareController:
    """Decides the share of the time that training works.

    Args:
        target: at least 1, and finite.
    """

    def __init__(self, target: float) -> None:
        self._allowed_slowdown = max(target - 1, _LEAST_SLOWDOWN)
        self._allowed = _RESERVE
        self._missed = False  # the target, in the stretch before
        self._busy = False
        self._wants_pause = False
        self._quiet_gaps: dict[int, Sequence[float]] = {}  # by load; measured in pauses
        self._stretch: _Stretch | None = None
        self._looked_at = -math.inf
        self._next_pause = -math.inf

    @property
    def busy(self) -> bool:
        """Whether requests ran when it last looked."""
        return self._busy

    @property
    def share(self) -> float:
        """0: pause, and call `paused`. 1: work without rests."""
        if not self._busy:
            return 1.0
        return 0.0 if self._wants_pause else min(self._allowed, 1.0)

    def look(self, reading: Reading, now: float) -> None:
        """Take in the engine's pulse, several times in each stretch; `now` in seconds."""
        idle, self._looked_at = now - self._looked_at > _IDLE_S, now
        self._busy = reading.running > 0
        stretch = self._stretch
        if not self._busy:
            self._stretch, self._wants_pause = None, False
        elif stretch is None or idle or stretch.of_another_load(reading):
            self._pause_is_over(now)
            self._work(reading, now)
        elif not stretch.settled and reading.steps >= stretch.since.steps + _LEFT_STEPS:
            self._stretch = replace(stretch, since=reading, settled=True)
        elif stretch.over(reading, now):
            self._end(stretch, reading, now)
            self._work(reading, now)

    def paused(self, reading: Reading, now: float) -> None:
        """Call once nothing trains any more. It must not, until `share` is above 0."""
        times = 1 if _load(reading) in self._quiet_gaps else _FIRST_PAUSE
        self._stretch = _Stretch(reading, now, pause=True, times=times, settled=False)
        self._looked_at = now

    def _work(self, reading: Reading, now: float) -> None:
        """Begin a stretch of work. It asks for a pause first if one is due."""
        self._wants_pause = now >= self._next_pause
        self._stretch = _Stretch(reading, now)

    def _end(self, stretch: _Stretch, reading: Reading, now: float) -> None:
        if self._wants_pause and not stretch.pause:
            return  # training has not yet come to the pause that it was asked for
        gaps, load = reading.since(stretch.since), _load(stretch.since)
        quiet_gaps = self._quiet_gaps.get(load)
        self._pause_is_over(now)
        if stretch.pause:
            older = quiet_gaps or [0.0] * len(gaps)
            self._quiet_gaps[load] = [_FADING * a + b for a, b in zip(older, gaps, strict=True)]
        elif quiet_gaps:
            self._adjust(quantile(quiet_gaps, _QUANTILE), quantile(gaps, _QUANTILE))

    def _pause_is_over(self, now: float) -> None:
        """If a pause ends here, set the time of the next."""
        if self._stretch is not None and self._stretch.pause:
            took = (now - self._stretch.began) / self._stretch.times
            self._next_pause = now + _PAUSE_APART * took

    def _adjust(self, quiet_s: float | None, training_s: float | None) -> None:
        if quiet_s is None or training_s is None:
            return  # no answer had a second token
        used = (training_s / quiet_s - 1) / self._allowed_slowdown
        far = min(max(used, 1 / _FARTHEST), _FARTHEST)
        if far > _FAR and self._missed:
            moved = min(self._allowed, 1.0) / far
        else:
            moved = self._allowed * far**-_GAIN
        self._missed = far > 1
        self._allowed = min(_RESERVE, max(LEAST_SHARE, moved))
        times = training_s * 1e3, quiet_s * 1e3
        message = "p95 between tokens: %.2f ms with training, %.2f without; training's share: %.2f"
        log.debug(message, *times, self._allowed)


def _load(reading: Reading) -> int:
    """The same for numbers of answers that are 20 % apart at most."""
    return round(2 * math.log2(max(reading.running, 1)))
