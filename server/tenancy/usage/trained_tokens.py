"""Counts the tokens that jobs have trained on, in whatever process, since this one began to ask."""

import time
from collections.abc import Callable

from server.db.usage_rows import HOUR_S
from server.tenancy.usage.usage_book import UsageBook


class TrainedTokens:
    """A counter that never goes back. For one thread at a time.

    It begins at 0. Prometheus would take what was trained before a restart for new otherwise. Each
    call reads the newest two hours alone, for a worker's clock may be behind.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, book: UsageBook, clock: Callable[[], float] = time.time) -> None:
        self._book = book
        self._since = int(clock() // HOUR_S) * HOUR_S - HOUR_S
        self._before: int | None = None  # what the hours before `_since` add

    def count(self) -> int:
        """The tokens so far. Raises Unavailable where the database cannot be reached."""
        hours = self._book.trained_by_hour(self._since)
        if self._before is None:
            self._before = -sum(hours.values())
        total = self._before + sum(hours.values())
        self._since = max([self._since, *(hour - HOUR_S for hour in hours)])
        self._before = total - sum(hours[hour] for hour in hours if hour >= self._since)
        return total
