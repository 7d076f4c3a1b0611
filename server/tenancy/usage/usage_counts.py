"""Counts what each key uses, in memory. The event loop only adds to numbers; a thread collects.

`server.tenancy.usage.usage_book` writes what is collected, and
`server.tenancy.usage.busy_names` shows it.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from server.db.audit_trail import Actor
from server.db.usage_rows import COUNTS, HOUR_S, OTHER, UsageKey
from server.tenancy.usage.busy_names import BusyNames

MOST_MODELS: Final = 1000
"""Models that are counted by name, of one owner in one hour; the rest are `other`."""

Hourly = dict[tuple[int, UsageKey], dict[str, int]]


class Meter:
    """The tokens of one request, while it is answered. Changed on the event loop alone."""

    __slots__ = ("at", "cached", "completion", "taken_cached", "taken_completion")

    def __init__(self, at: UsageKey) -> None:
        self.at = at
        self.completion = self.cached = 0
        self.taken_completion = self.taken_cached = 0  # by the thread that collects


class UsageCounts:
    """The counts of one process that were not written yet. Thread-safe.

    Args:
        clock: Unix seconds.
    """

    def __init__(
        self, busy: BusyNames | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.busy = BusyNames() if busy is None else busy
        self._clock = clock
        self._lock = threading.Lock()
        self._open: set[Meter] = set()
        self._new: defaultdict[UsageKey, dict[str, int]] = defaultdict(_zeros)
        self._hourly: Hourly = {}
        self._lately: defaultdict[str, dict[str, int]] = defaultdict(_zeros)  # by owner
        self._hour = 0
        self._models: defaultdict[str, set[str]] = defaultdict(set)  # of this hour, by owner

    def begin(self, actor: Actor, model: str, prompt_tokens: int) -> Meter:
        """Count a request that the engine took; `end` the meter when it is over."""
        at = _key_of(actor, model)
        with self._lock:
            meter = Meter(at)
            counts = self._new[at]
            counts["requests"] += 1
            counts["prompt"] += prompt_tokens
            self._open.add(meter)
        return meter

    def end(self, meter: Meter) -> None:
        """Count the last tokens of a request."""
        with self._lock:
            self._read(meter)
            self._open.discard(meter)

    def refused(self, actor: Actor) -> None:
        """Count a request that was answered with an error."""
        with self._lock:
            self._new[_key_of(actor)]["refusals"] += 1

    def collect(self) -> None:
        """Put what was counted since the last call into this hour, and show it to `busy`."""
        hour = int(self._clock() // HOUR_S) * HOUR_S
        with self._lock:
            for meter in self._open:
                self._read(meter)
            new, self._new = self._new, defaultdict(_zeros)
            if hour != self._hour:
                self._hour = hour
                self._models.clear()
            for at, counts in new.items():
                self.busy.count(at, counts)
                sums = self._hourly.setdefault((hour, self._named(at)), _zeros())
                lately = self._lately[at.owner]
                for name, count in counts.items():
                    sums[name] += count
                    lately[name] += count

    def take(self) -> Hourly:
        """What was collected, which from now on is the caller's to write."""
        self.collect()
        with self._lock:
            taken, self._hourly = self._hourly, {}
        return taken

    def lately(self) -> dict[str, dict[str, int]]:
        """What each owner used since the last call; `server.api.history` alone calls it."""
        self.collect()
        with self._lock:
            taken, self._lately = self._lately, defaultdict(_zeros)
        return taken

    def _read(self, meter: Meter) -> None:
        completion, cached = meter.completion, meter.cached
        if (completion, cached) != (meter.taken_completion, meter.taken_cached):
            counts = self._new[meter.at]
            counts["completion"] += completion - meter.taken_completion
            counts["cached"] += cached - meter.taken_cached
            meter.taken_completion, meter.taken_cached = completion, cached

    def _named(self, at: UsageKey) -> UsageKey:
        models = self._models[at.owner]
        if at.model in models or len(models) < MOST_MODELS:
            models.add(at.model)
            return at
        return UsageKey(at.owner, at.key, at.user, OTHER)


def _key_of(actor: Actor, model: str = "") -> UsageKey:
    return UsageKey(actor.owner or "", actor.key or "", actor.user or "", model)


def _zeros() -> dict[str, int]:
    return dict.fromkeys(COUNTS, 0)


def rows_of(hourly: Hourly) -> Iterator[tuple[int, UsageKey, dict[str, int]]]:
    """The same, as `add_usage` takes it."""
    return ((start, at, counts) for (start, at), counts in hourly.items())
