"""How much of the time training may take beside requests. Pure: it is told figures and the time.

A target says how many times as long the time between tokens may become (95th percentile). What it
is without training is listened for in short pauses, for each load by itself, and what several of
them heard is taken together: many short ones, because the time between tokens grows with the
answers, and one long pause would hear one moment of theirs. In between, each stretch of work is
judged: the share moves in proportion to how far the stretch was from the target, on a logarithmic
scale, so that noise up and noise down cancel out. It begins at the whole time, with a reserve that
some misses use up before there is any rest, and outlives the moments without requests.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from server.pulse import Reading, quantile

log = logging.getLogger(__name__)

LEAST: Final = 0.03  # of the time: fewer than one token in twenty waits for it
_QUANTILE: Final = 0.95
_WORK_S, _WORK_STEPS = 0.2, 48  # of the engine: a share stands for both
_LISTEN_S, _LISTEN_STEPS = 0.02, 16  # a pause lasts for both
_LEFT_STEPS: Final = 2  # at a pause's begin, that were launched while training worked
_FIRST: Final = 6  # times as long: the first of a load
_LONGEST_S: Final = 2.0  # of a pause, should the engine take few steps
_APART: Final = 20  # times as long as a pause: until the next
_FADING: Final = 0.9  # of what was known, from one pause to the next
_GAIN: Final = 0.6  # of the way to the share that would just meet the target
_RESERVE: Final = 2.0  # a share above 1 is as good as 1, and takes longer to fall below
_FAR: Final = 2.0  # times above the target, after a miss: no noise, so all of the way is gone
_FARTHEST: Final = 8.0  # times above or below: beyond, a stretch counts as this far
_CLOSEST: Final = 0.01  # a target of 1 leaves nothing, and nothing cannot be divided by
_OTHER_LOAD: Final = 1.5  # times the answers with which a stretch began
_ASLEEP_S: Final = 0.5  # without a look: nobody trained


@dataclass(frozen=True)
class _Stretch:
    """From where on figures are looked at."""

    since: Reading
    began: float
    alone: bool = False
    times: int = 1  # as long as such stretches are
    settled: bool = True  # whether what was launched before it began has been told

    def over(self, reading: Reading, now: float) -> bool:
        took, steps = now - self.began, reading.steps - self.since.steps
        if self.alone and took > _LONGEST_S:
            return True
        if self.alone:
            return steps >= self.times * _LISTEN_STEPS and took >= self.times * _LISTEN_S
        return steps >= _WORK_STEPS and took >= _WORK_S

    def of_another_load(self, reading: Reading) -> bool:
        then, now = self.since.running, reading.running
        return max(then, now) > _OTHER_LOAD * min(then, now)


class ShareController:
    """Decides the share of the time that training works.

    Args:
        target: at least 1, and finite.
    """

    def __init__(self, target: float) -> None:
        self._room = max(target - 1, _CLOSEST)
        self._allowed = _RESERVE
        self._missed = False  # the target, in the stretch before
        self._busy = False
        self._wants_pause = False
        self._alone: dict[int, Sequence[float]] = {}  # gaps, by load
        self._stretch: _Stretch | None = None
        self._looked = -math.inf
        self._next_pause = -math.inf

    @property
    def busy(self) -> bool:
        """Whether requests ran when it last looked."""
        return self._busy

    @property
    def share(self) -> float:
        """0: pause, and say so by `paused`; 1: work as fast as you can."""
        if not self._busy:
            return 1.0
        return 0.0 if self._wants_pause else min(self._allowed, 1.0)

    def look(self, reading: Reading, now: float) -> None:
        """Take in what the engine tells, some times in each stretch; `now` in seconds."""
        asleep, self._looked = now - self._looked > _ASLEEP_S, now
        self._busy = reading.running > 0
        stretch = self._stretch
        if not self._busy:
            self._stretch, self._wants_pause = None, False
        elif stretch is None or asleep or stretch.of_another_load(reading):
            self._pause_is_over(now)
            self._work(reading, now)
        elif not stretch.settled and reading.steps >= stretch.since.steps + _LEFT_STEPS:
            self._stretch = replace(stretch, since=reading, settled=True)
        elif stretch.over(reading, now):
            self._end(stretch, reading, now)
            self._work(reading, now)

    def paused(self, reading: Reading, now: float) -> None:
        """From here on nothing trains, until `share` is above 0."""
        times = 1 if _load(reading) in self._alone else _FIRST
        self._stretch = _Stretch(reading, now, alone=True, times=times, settled=False)
        self._looked = now

    def _work(self, reading: Reading, now: float) -> None:
        """Begin a stretch of work; with a pause before it, if it is time to listen."""
        self._wants_pause = now >= self._next_pause
        self._stretch = _Stretch(reading, now)

    def _end(self, stretch: _Stretch, reading: Reading, now: float) -> None:
        if self._wants_pause and not stretch.alone:
            return  # it was asked for, and training has not come to it yet
        gaps, load = reading.since(stretch.since), _load(stretch.since)
        known = self._alone.get(load)
        self._pause_is_over(now)
        if stretch.alone:
            self._alone[load] = _joined(known, gaps) if known else gaps
        elif known:
            self._judge(quantile(known, _QUANTILE), quantile(gaps, _QUANTILE))

    def _pause_is_over(self, now: float) -> None:
        """If it was one that ends here, put the next off."""
        if self._stretch is not None and self._stretch.alone:
            took = (now - self._stretch.began) / self._stretch.times
            self._next_pause = now + _APART * took

    def _judge(self, alone_s: float | None, beside_s: float | None) -> None:
        if alone_s is None or beside_s is None:
            return  # no answer had a second token
        taken = (beside_s / alone_s - 1) / self._room
        far = min(max(taken, 1 / _FARTHEST), _FARTHEST)
        if far > _FAR and self._missed:
            moved = min(self._allowed, 1.0) / far
        else:
            moved = self._allowed * far**-_GAIN
        self._missed = far > 1
        self._allowed = min(_RESERVE, max(LEAST, moved))
        log.debug(
            "p95 between tokens %.2f ms beside training, %.2f without: its share becomes %.2f",
            beside_s * 1e3,
            alone_s * 1e3,
            self._allowed,
        )


def _joined(before: Sequence[float], gaps: Sequence[int]) -> Sequence[float]:
    return [_FADING * old + new for old, new in zip(before, gaps, strict=True)]


def _load(reading: Reading) -> int:
    """The same for numbers of answers that are 20 % apart at most."""
    return round(2 * math.log2(max(reading.running, 1)))
