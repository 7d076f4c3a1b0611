"""A process's part of an owner's requests at once. Knows no SQL."""

from collections.abc import Callable

_AHEAD = 32  # a process holds at most one part in so many beyond what it needs
_SEEN_S = 5.0  # how often a process says that it still is there
_TRUST_S = 0.2  # how long a refusal is repeated without asking the store

Hold = Callable[[int, int], int]
"""Asks the store for so many of so many places; returns how many this process has now."""


class Places:
    """Places that are taken ahead from the store. Not thread-safe: the caller holds a lock."""

    def __init__(self, hold: Hold, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._hold = hold
        self._held = 0
        self._said_at = self._refused_until = 0.0

    def known(self, now: float) -> bool:
        """Whether `take` needs no trip to the store."""
        return self.taken < self._held or now < self._refused_until

    def take(self, now: float) -> bool:
        """Take a place, if there is one."""
        if not self.known(now):
            self._ask(self.taken + 1 + self.limit // _AHEAD, now)
        if self.taken < self._held:
            self.taken += 1
            return True
        self._refused_until = max(self._refused_until, now + _TRUST_S)
        return False

    def tidy(self, now: float) -> bool:
        """To be called about twice a second: give back what is too much, and keep the rest.
        Returns whether this process has no place."""
        keep = self.taken + min(self.taken, self.limit // _AHEAD)
        if self._held > keep or (self._held and now - self._said_at > _SEEN_S):
            self._ask(keep, now)
        return not self._held

    def change(self, limit: int, now: float) -> None:
        """Hold another limit from now on. Whoever has a place keeps it."""
        self.limit, self._refused_until = limit, now
        self._ask(self.taken, now)

    def _ask(self, wanted: int, now: float) -> None:
        self._held, self._said_at = self._hold(wanted, self.limit), now
