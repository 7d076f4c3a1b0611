"""Counters of the busiest owners and adapters by name, and of all others together, for /metrics.

A counter must never go back, and a dashboard's lines should not come and go. So:

- A name counts for itself from when it gets a place, and `other` counts what comes without one.
  Nothing is ever moved between them: what `other` has it keeps, and the rates add up to the total.
- A name that loses its place vanishes. If it comes back it begins at 0, as after a restart.
- A place changes hands only if its holder had it for some minutes and the newcomer is much busier.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from server.db.usage_rows import OTHER, UsageKey
from server.metrics import PREFIX, UndescribedCollector

HALF_LIFE_S: Final = 600.0
HELD_S: Final = 600.0
BUSIER: Final = 2.0
MOST_RANKED: Final = 20_000
_SLIGHT: Final = 0.5  # requests: less is forgotten

_OWNER_COUNTS: Final = {
    "requests": ("requests", "Requests that the engine took"),
    "refusals": ("refused_requests", "Requests that were answered with an error"),
    "prompt": ("prompt_tokens", "Tokens of prompts"),
    "completion": ("generation_tokens", "Tokens of answers"),
}
_ADAPTER_COUNTS: Final = {name: told for name, told in _OWNER_COUNTS.items() if name != "refusals"}

Name = tuple[str, ...]


class Ranking:
    """Who is busiest, and the counts of those with a place.

    Args:
        others: the name of the rest; who is called so is not told apart from it.
    """

    def __init__(self, places: int, others: Name) -> None:
        self.others = others
        self.named: dict[Name, dict[str, int]] = {}
        self.rest: dict[str, int] = {}
        self._places = places
        self._scores: dict[Name, float] = {}
        self._since: dict[Name, float] = {}
        self._reviewed: float | None = None

    def count(self, name: Name, counts: Mapping[str, int], now: float) -> None:
        """Count for a name. It gets a place if one is free."""
        if name != self.others:
            busy = counts["requests"] + counts["refusals"]
            self._scores[name] = self._score(name) + busy
            if name not in self.named and len(self.named) < self._places:
                self._seat(name, now)
        sums = self.named.get(name, self.rest)
        for what, count in counts.items():
            sums[what] = sums.get(what, 0) + count
        if len(self._scores) > 2 * MOST_RANKED:
            self._forget_slight()

    def review(self, now: float) -> None:
        """Let what is past count less, and give places to those who are much busier."""
        fade = 0.5 ** ((now - (self._reviewed or now)) / HALF_LIFE_S)
        self._reviewed = now
        self._scores = {name: score * fade for name, score in self._scores.items()}
        self._forget_slight()
        held = [name for name, since in self._since.items() if now - since >= HELD_S]
        held.sort(key=self._score)
        others = (name for name in self._scores if name not in self.named)
        for worst, best in zip(held, sorted(others, key=self._score, reverse=True), strict=False):
            if self._score(best) <= BUSIER * max(self._score(worst), _SLIGHT):
                break
            del self.named[worst], self._since[worst]
            self._seat(best, now)

    def sums(self) -> dict[Name, dict[str, int]]:
        """The counts by name, and those of all others."""
        named = {name: dict(sums) for name, sums in self.named.items()}
        return named | {self.others: dict(self.rest)}

    def _seat(self, name: Name, now: float) -> None:
        self.named[name], self._since[name] = {}, now

    def _score(self, name: Name) -> float:
        return self._scores.get(name, 0.0)

    def _forget_slight(self) -> None:
        busiest = sorted(self._scores, key=self._score, reverse=True)[:MOST_RANKED]
        self._scores = {name: self._scores[name] for name in busiest if self._score(name) > _SLIGHT}


class BusyNames(UndescribedCollector):
    """See above. Thread-safe.

    Args:
        model_name: the served id of the base model, whose own answers are no adapter's.
        most: how many owners, and how many adapters, have a name.
        clock: seconds.
    """

    def __init__(
        self,
        model_name: str = "base",
        most: int = 50,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model_name = model_name
        self._clock = clock
        self._lock = threading.Lock()
        self._owners = Ranking(most, (OTHER,))
        self._adapters = Ranking(most, (OTHER, OTHER))

    def count(self, at: UsageKey, counts: Mapping[str, int]) -> None:
        """Count what an owner used of a model."""
        now = self._clock()
        with self._lock:
            self._owners.count((at.owner,), counts, now)
            if at.model not in ("", self._model_name):
                owner, slash, name = at.model.rpartition("/")
                adapter = (owner, name) if slash else (at.owner, name)
                self._adapters.count(adapter, counts, now)

    def collect(self) -> Iterator[Metric]:
        """The counters, for `/metrics`."""
        now = self._clock()
        with self._lock:
            self._owners.review(now)
            self._adapters.review(now)
            owners, adapters = self._owners.sums(), self._adapters.sums()
        yield from self._families(_OWNER_COUNTS, owners, "owner")
        yield from self._families(_ADAPTER_COUNTS, adapters, "owner", "adapter")

    def _families(
        self,
        counts: Mapping[str, tuple[str, str]],
        sums: Mapping[Name, Mapping[str, int]],
        *labels: str,
    ) -> Iterator[Metric]:
        kind = labels[-1]
        for count, (name, text) in counts.items():
            family = CounterMetricFamily(
                f"{PREFIX}{kind}_{name}",
                f"{text}, of the busiest {kind}s by name.",
                labels=("model_name", *labels),
            )
            for values, counted in sums.items():
                family.add_metric([self._model_name, *values], counted.get(count, 0))
            yield family
