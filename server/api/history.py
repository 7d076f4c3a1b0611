"""The last minutes of this process, in memory: what owners used, and what the engine had to do.

A thread adds a moment every two seconds. What it keeps is bounded, whoever asks for whatever.
"""

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

from server.interfaces import Engine
from server.scheduler.request import LoopStats
from server.tenancy.repeating import repeating
from server.tenancy.usage.usage_counts import UsageCounts

EVERY_S: Final = 2.0
MOST_MOMENTS: Final = 120
MOST_OWNERS: Final = 200
"""Owners that a moment names: the busiest. The sums count the others too."""
_NOW: Final = 5  # moments whose mean is the rate now

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Moment:
    """What was used in the seconds up to `at`, and how the engine was then."""

    at: float
    seconds: float
    everyone: Counts
    owners: Mapping[str, Counts]
    stats: LoopStats

    def used(self, owner: str | None, names: Iterable[str]) -> int:
        """The sum of these counts, of one owner or (None) of all."""
        counts = self.everyone if owner is None else self.owners.get(owner, {})
        return sum(counts.get(name, 0) for name in names)


class History:
    """The moments, the oldest first. Thread-safe.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moments: deque[Moment] = deque(maxlen=MOST_MOMENTS)
        self._lock = threading.Lock()
        self._last = clock()

    def add(self, lately: Mapping[str, Counts], stats: LoopStats) -> None:
        """Add a moment: what each owner used since the one before."""
        now = self._clock()
        everyone: dict[str, int] = {}
        for counts in lately.values():
            for name, count in counts.items():
                everyone[name] = everyone.get(name, 0) + count
        busiest = heapq.nlargest(MOST_OWNERS, lately.items(), key=lambda it: sum(it[1].values()))
        with self._lock:
            seconds = max(now - self._last, 1e-3)
            self._last = now
            self._moments.append(Moment(now, seconds, everyone, dict(busiest), stats))

    @property
    def latest(self) -> LoopStats | None:
        """What the engine last told; None: nothing yet."""
        moments = self._read()
        return moments[-1].stats if moments else None

    def rates(self, owner: str | None, *names: str) -> list[float]:
        """How many of these counts in a second, at each moment."""
        return [it.used(owner, names) / it.seconds for it in self._read()]

    def rate(self, owner: str | None, *names: str) -> float:
        """The same, of the last ten seconds."""
        return _mean(islice(reversed(self._read()), _NOW), owner, names)

    def in_last(self, seconds: float, owner: str | None, *names: str) -> int:
        """The sum of these counts since so many seconds ago."""
        since = self._clock() - seconds
        return sum(it.used(owner, names) for it in self._read() if it.at > since)

    def stats(self, value: Callable[[LoopStats], float]) -> list[float]:
        """One figure of the engine at each moment."""
        return [value(it.stats) for it in self._read()]

    def _read(self) -> Sequence[Moment]:
        with self._lock:
            return [*self._moments]


def _mean(moments: Iterable[Moment], owner: str | None, names: Sequence[str]) -> float:
    found = [*moments]
    seconds = sum(it.seconds for it in found)
    return sum(it.used(owner, names) for it in found) / seconds if found else 0.0


@contextmanager
def keeping_history(
    history: History, usage: UsageCounts, engine: Engine, *, every_s: float = EVERY_S
) -> Iterator[None]:
    """Add moments to a history until the end of the context."""

    def look() -> None:
        stats = engine.stats()  # first: what was taken of the usage must not be lost
        history.add(usage.lately(), stats)

    with repeating("the console's figures get old", (look, every_s), at_end=lambda: None):
        yield
