"""How much an owner uses an adapter, day by day."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from server.console.rendering import Page
from server.tenancy.usage.usage_book import DAY_S, Place, Question

DAYS: Final = 30


@dataclass(frozen=True)
class Day:
    """A day of UTC: when it begins, its requests, and the tokens of prompts and answers."""

    start: int
    requests: int = 0
    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True)
class AdapterUsage:
    """The last days, the oldest first, today among them."""

    days: Sequence[Day]

    @property
    def requests(self) -> int:
        return sum(day.requests for day in self.days)

    @property
    def prompt(self) -> int:
        return sum(day.prompt for day in self.days)

    @property
    def completion(self) -> int:
        return sum(day.completion for day in self.days)

    @property
    def most(self) -> int:
        """Requests of the busiest day."""
        return max(day.requests for day in self.days)

    @property
    def last_day(self) -> int | None:
        """When the last day began on which it was used; None: not in these days."""
        return next((day.start for day in reversed(self.days) if day.requests), None)


def usage_of(page: Page, name: str) -> AdapterUsage | None:
    """What the page's owner used of an adapter (NAME or OWNER/NAME); None if that is not for the
    browser's key to see."""
    if not page.may("usage.read"):
        return None
    now = int(time.time())
    first = (now // DAY_S - DAYS + 1) * DAY_S
    question = Question(first, now + 1, DAY_S, owners=[page.owner], models=[name])
    starts, found, _ = page.services.tenants.usage.buckets(question, Place(first), DAYS)
    by_start = {it.start: Day(it.start, it.requests, it.prompt, it.completion) for it in found}
    return AdapterUsage([by_start.get(start, Day(start)) for start in starts])
