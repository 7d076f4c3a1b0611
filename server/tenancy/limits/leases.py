"""One limit for several processes: each takes a little of the shared bucket ahead. Knows no SQL.

What a process holds is already gone from the shared bucket, so all together never pass the limit.
A process that dies loses what it holds, which the bucket refills in a second or so: nobody has to
find out whose it was. No token costs a trip to the store: a request costs at most two, and none
while the process holds enough.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.tenancy.limits.gcra import MOST_OWED_S, PERIOD_S, Bucket, Verdict

_AHEAD = 0.005  # of a minute's limit: what a process holds beyond what it needs
_SPARE = 16  # and at most one part in so many of what is left
_TRUST_S = 1.0  # how long a refusal is repeated without asking the store
_IDLE_S = 2.0  # after which a process gives back what it holds


@dataclass(frozen=True)
class Lease:
    """What was taken, and what the shared bucket then holds."""

    taken: float
    available: float


class LeaseStore(Protocol):
    """The shared buckets, one a key: a row of the database with `full_at`."""

    def exchange(
        self, key: str, limit: int, *, least: float, most: float, back: float, owed: float
    ) -> Lease:
        """`Bucket.exchange` in one transaction, by the store's clock: processes' clocks differ."""
        ...


class MemoryStore:
    """For one process, and for tests."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, Bucket] = {}

    def exchange(
        self, key: str, limit: int, *, least: float, most: float, back: float, owed: float
    ) -> Lease:
        with self._lock:
            now = self._clock()
            bucket = self._buckets.setdefault(key, Bucket(limit, now))
            if bucket.limit != limit:  # an administrator has changed it
                bucket = self._buckets[key] = Bucket(limit, bucket.full_at)
            taken = bucket.exchange(now, least=least, most=most, back=back, owed=owed)
            return Lease(taken, bucket.available(now))


class LeasedBucket:
    """A process's part of one shared bucket. Not thread-safe: the caller holds a lock."""

    def __init__(self, store: LeaseStore, key: str, limit: int, now: float) -> None:
        self._store, self._key, self.limit = store, key, limit
        self._held = self._owed = 0.0
        self._most_owed = MOST_OWED_S * limit / PERIOD_S
        self._shared, self._seen = float(limit), now  # what the shared bucket held, and when
        self._refused_until = self._used = now
        self._refused_least = 0.0

    def take(self, amount: float, now: float, *, refusal_counts: bool = False) -> Verdict:
        """Take all of `amount`, or nothing; `refusal_counts`: a refused amount is counted too."""
        self._used = now
        if amount > self._held and not self._known_refusal(amount, now):
            self._lease(amount, now)
        if amount <= self._held + 1e-6:
            self._held = max(self._held - amount, 0.0)
            return Verdict.of(self.limit, self._available(now))
        if refusal_counts:
            self._owed = min(self._owed + amount, self._most_owed)
        return Verdict.of(self.limit, min(self._available(now), amount - 1e-3), amount)

    def known(self, amount: float, now: float) -> bool:
        """Whether `take` needs no trip to the store."""
        return amount <= self._held or self._known_refusal(amount, now)

    def settle(self, reserved: float, used: float) -> None:
        """What was `reserved` is over, and so much was `used`. The next `tidy` tells the store."""
        self._owed += max(used - reserved, 0.0)
        self._held += max(reserved - used, 0.0)

    def tidy(self, now: float) -> bool:
        """To be called about twice a second: tell the store what it does not know yet, and give
        back what is too much. Returns whether there was nothing of either."""
        keep = 0.0 if now - self._used > _IDLE_S else _AHEAD * self.limit
        if not self._owed and self._held <= 2 * keep:
            return not self._held
        self._exchange(now, keep=min(keep, self._held))
        return False

    def close(self, now: float) -> None:
        """Give back all."""
        self._exchange(now, keep=0.0)

    def _known_refusal(self, amount: float, now: float) -> bool:
        return now < self._refused_until and amount - self._held >= self._refused_least

    def _lease(self, amount: float, now: float) -> None:
        least = amount - self._held
        ahead = min(_AHEAD * self.limit, max(self._shared_now(now) - least, 0.0) / _SPARE)
        if not self._exchange(now, keep=self._held, least=least, most=least + ahead):
            short_s = max(least - self._shared, 0.0) * PERIOD_S / self.limit
            self._refused_until, self._refused_least = now + min(short_s, _TRUST_S), least

    def _exchange(self, now: float, *, keep: float, least: float = 0.0, most: float = 0.0) -> bool:
        back = max(self._held - keep, 0.0)
        lease = self._store.exchange(
            self._key, self.limit, least=least, most=most, back=back, owed=self._owed
        )
        self._held += lease.taken - back
        self._owed = 0.0
        if back:
            self._refused_until = now
        self._shared, self._seen = lease.available, now
        return lease.taken > 0

    def _shared_now(self, now: float) -> float:
        return min(self._shared + (now - self._seen) * self.limit / PERIOD_S, self.limit)

    def _available(self, now: float) -> float:
        available = self._shared_now(now) + self._held - self._owed
        return max(min(available, self.limit), -self._most_owed)
