"""How an engine fares, for other processes to read: a few kilobytes of shared memory in a file.

One process writes, any number read; nobody locks and nobody waits. Times between tokens are counted
in buckets that only ever grow, so each reader may ask about a stretch of time of its own choosing.
Knows no engine and no training.
"""

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_RUNNING, _STEPS, _HEAD = 0, 1, 2  # places of the head's numbers, and how many there are
_SHORTEST_S: Final = 1e-4
_PER_OCTAVE: Final = 32  # a bucket is 2 % wide
_BUCKETS: Final = 16 * _PER_OCTAVE  # up to 6.5 s
_WORD: Final = 8
_BYTES: Final = (_HEAD + _BUCKETS) * _WORD


@dataclass(frozen=True)
class Reading:
    """What an engine had told at one moment.

    `running` answers are being generated. `steps` were taken since the engine started; `gaps` has
    the number of tokens by how long they came after the one before.
    """

    running: int
    steps: int
    gaps: Sequence[int]

    def quantile(self, since: "Reading", share: float) -> float | None:
        """Seconds between tokens that `share` of those since another reading did not exceed; None
        if there were none. True to 2 %."""
        counts = [now - then for now, then in zip(self.gaps, since.gaps, strict=True)]
        rank = share * sum(counts)
        if not rank:
            return None
        seen = 0
        for bucket, count in enumerate(counts):
            seen += count
            if seen >= rank:
                return _SHORTEST_S * math.pow(2, (bucket + 0.5) / _PER_OCTAVE)
        raise AssertionError("a rank is at most the sum")


class Pulse:
    """The engine's side. A file that is there already is replaced: its readers keep the old."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(file, _BYTES)
            self._words = memoryview(mmap.mmap(file, _BYTES)).cast("q")
        finally:
            os.close(file)

    def running(self, answers: int) -> None:
        """So many answers are being generated now."""
        self._words[_RUNNING] = answers

    def step(self, gaps: Mapping[float, int]) -> None:
        """A step was told: so many tokens came so many seconds after the ones before them."""
        for seconds, tokens in gaps.items():
            self._words[_HEAD + _bucket(seconds)] += tokens
        self._words[_STEPS] += 1

    def close(self) -> None:
        """Nothing runs any more, and nobody is to look."""
        self.running(0)
        self.path.unlink(missing_ok=True)


class PulseReader:
    """Another process's side. Raises OSError if there is no such file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), _BYTES, access=mmap.ACCESS_READ)
        self._words = memoryview(memory).cast("q")

    @property
    def running(self) -> int:
        """Answers that are being generated: cheap to ask."""
        return self._words[_RUNNING]

    def read(self) -> Reading:
        """All of it; what is written meanwhile is in it or is not."""
        words = self._words.tolist()
        return Reading(words[_RUNNING], words[_STEPS], words[_HEAD:])


def _bucket(seconds: float) -> int:
    if seconds <= _SHORTEST_S:
        return 0
    return min(int(math.log2(seconds / _SHORTEST_S) * _PER_OCTAVE), _BUCKETS - 1)
