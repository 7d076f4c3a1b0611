"""Counts an engine's steps and the times between its tokens, for training in the same process.

One thread writes and any number read, without locks. Times between tokens are counted in buckets
that only ever grow, so a reader compares two readings for the time between them. Knows no engine
and no training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

_SHORTEST_S: Final = 1e-4
_PER_OCTAVE: Final = 32  # a bucket is 2 % wide
_BUCKETS: Final = 16 * _PER_OCTAVE  # up to 6.5 s


@dataclass(frozen=True)
class Reading:
    """The counts at one moment.

    `running`: answers that are being generated. `steps`: since the engine started. `gaps`: the
    number of tokens in each bucket of time since the token before.
    """

    running: int
    steps: int
    gaps: Sequence[int]

    def since(self, earlier: "Reading") -> list[int]:
        """As `gaps`, for the tokens since an earlier reading."""
        return [now - then for now, then in zip(self.gaps, earlier.gaps, strict=True)]


class Pulse:
    """Written by the engine's thread alone.

    Attributes:
        running: answers that are being generated now.
    """

    def __init__(self) -> None:
        self.running = 0
        self._steps = 0
        self._gaps = [0] * _BUCKETS

    def step(self, gaps: Mapping[float, int]) -> None:
        """Count a step: `gaps` has the number of tokens by seconds since the token before."""
        for seconds, tokens in gaps.items():
            self._gaps[_bucket(seconds)] += tokens
        self._steps += 1

    def read(self) -> Reading:
        """The counts now; a step that is being counted may be in it in part."""
        return Reading(self.running, self._steps, self._gaps.copy())


def quantile(gaps: Sequence[float], share: float) -> float | None:
    """The quantile `share` of the seconds between tokens, true to 2 %; None if there are no tokens.

    Args:
        gaps: as in a `Reading`; the counts may be weighted.
    """
    rank = share * sum(gaps)
    if not rank:
        return None
    bucket = next(at for at, total in enumerate(accumulate(gaps)) if total >= rank)
    return _SHORTEST_S * math.pow(2, (bucket + 0.5) / _PER_OCTAVE)


def _bucket(seconds: float) -> int:
    if seconds <= _SHORTEST_S:
        return 0
    return min(int(math.log2(seconds / _SHORTEST_S) * _PER_OCTAVE), _BUCKETS - 1)
