"""Counts the bytes of all adapters, now and then, and apart: a look at every folder takes seconds
where there are thousands of them."""

import heapq
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from server.api.ops import SharedCall
from server.interfaces import Adapters

_MOST_KEPT: Final = 100_000
_EVERY_S: Final = 60.0
_REST: Final = 20  # times as long as a count took, the next one is not begun
_PATIENCE_S: Final = 0.5


@dataclass(frozen=True)
class Census:
    """What there was at a moment. `sizes` has the largest 100,000 adapters by owner and name;
    `adapters` and `bytes` count all, by owner."""

    at: int
    sizes: Mapping[tuple[str, str], int]
    adapters: Mapping[str, int]
    bytes: Mapping[str, int]

    def largest(self, most: int, owner: str | None = None) -> list[tuple[str, str]]:
        """The largest adapters, of one owner or all: owner and name."""
        mine = self.sizes if owner is None else [it for it in self.sizes if it[0] == owner]
        return heapq.nsmallest(most, mine, key=lambda it: (-self.sizes[it], it))


class AdapterCensus:
    """The last census. Who asks begins another, if that one is old, and waits a moment for it."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._call = SharedCall(self._count)
        self._last: Census | None = None
        self._due = 0.0

    async def last(self) -> Census | None:
        """None: the first one is still under way."""
        if time.monotonic() >= self._due:
            await self._call.within(_PATIENCE_S, None)
        return self._last

    def _count(self) -> Census:
        began = time.monotonic()
        sizes: dict[tuple[str, str], int] = {}
        adapters, total = {}, {}
        for owner in self._adapters.owners():
            mine = self._adapters.sizes(owner)
            adapters[owner], total[owner] = len(mine), sum(mine.values())
            sizes |= {(owner, name): count for name, count in mine.items()}
            if len(sizes) > 2 * _MOST_KEPT:
                sizes = _largest(sizes)
        self._last = Census(int(time.time()), _largest(sizes), adapters, total)
        took = time.monotonic() - began
        self._due = time.monotonic() + max(_EVERY_S, _REST * took)
        return self._last


def _largest(sizes: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    if len(sizes) <= _MOST_KEPT:
        return sizes
    return dict(heapq.nlargest(_MOST_KEPT, sizes.items(), key=lambda item: item[1]))
