"""How an engine fares, for whoever trains beside it in its process.

One thread writes, any number read; nobody locks and nobody waits. Times between tokens are counted
in buckets that only ever grow, so each reader may ask about a stretch of time of its own choosing.
Knows no engine and no training.
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
    """What an engine had told at one moment.

    `running` answers are being generated. `steps` were taken since the engine started; `gaps` has
    the number of tokens by how long they came after the one before.
    """

    running: int
    steps: int
    gaps: Sequence[int]

    def since(self, earlier: "Reading") -> list[int]:
        """As `gaps`, of the tokens since another reading."""
        return [now - then for now, then in zip(self.gaps, earlier.gaps, strict=True)]


class Pulse:
    """Told by the engine's thread alone.

    Attributes:
        running: answers that are being generated now.
    """

    def __init__(self) -> None:
        self.running = 0
        self._steps = 0
        self._gaps = [0] * _BUCKETS

    def step(self, gaps: Mapping[float, int]) -> None:
        """A step was told: so many tokens came so many seconds after the ones before them."""
        for seconds, tokens in gaps.items():
            self._gaps[_bucket(seconds)] += tokens
        self._steps += 1

    def read(self) -> Reading:
        """All of it; what is told meanwhile is in it or is not."""
        return Reading(self.running, self._steps, self._gaps.copy())


def quantile(gaps: Sequence[float], share: float) -> float | None:
    """Seconds between tokens that `share` of them did not exceed, true to 2 %; None of none.

    Args:
        gaps: as in a Reading; their numbers may be weighted.
    """
    rank = share * sum(gaps)
    if not rank:
        return None
    bucket = next(at for at, seen in enumerate(accumulate(gaps)) if seen >= rank)
    return _SHORTEST_S * math.pow(2, (bucket + 0.5) / _PER_OCTAVE)


def _bucket(seconds: float) -> int:
    if seconds <= _SHORTEST_S:
        return 0
    return min(int(math.log2(seconds / _SHORTEST_S) * _PER_OCTAVE), _BUCKETS - 1)
