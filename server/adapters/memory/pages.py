"""Keeps account of the free pages of a memory."""

from bisect import bisect_left


class FreePages:
    """Ranges of neighbouring pages, handed out first fit. A returned range joins its neighbours.

    Args:
        first: the number of the first page.
    """

    def __init__(self, first: int, count: int) -> None:
        self.total = count
        self.free = count
        self._starts = [first]
        self._counts = [count]

    def take(self, count: int) -> int | None:
        """The first page of a range of `count`; None if no range is as long."""
        for at, length in enumerate(self._counts):
            if length < count:
                continue
            start = self._starts[at]
            self.free -= count
            if length == count:
                del self._starts[at], self._counts[at]
            else:
                self._starts[at] += count
                self._counts[at] -= count
            return start
        return None

    def give(self, start: int, count: int) -> None:
        """Return a range that `take` handed out."""
        at = bisect_left(self._starts, start)
        joins_next = at < len(self._starts) and start + count == self._starts[at]
        joins_last = at > 0 and self._starts[at - 1] + self._counts[at - 1] == start
        self.free += count
        if joins_last:
            self._counts[at - 1] += count
            if joins_next:
                self._counts[at - 1] += self._counts[at]
                del self._starts[at], self._counts[at]
        elif joins_next:
            self._starts[at] = start
            self._counts[at] += count
        else:
            self._starts.insert(at, start)
            self._counts.insert(at, count)
