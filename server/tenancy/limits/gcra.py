"""How much an owner may use in a minute: the arithmetic of one bucket. Knows no clock and no store.

GCRA, the generic cell rate algorithm (ITU-T I.371): a bucket is one number, the moment at which it
is full again. To use some of it moves that moment on; to be refused is that it would move too far.
A full bucket holds a minute's limit, so the first minute may see it used and refilled.
"""

import math
from dataclasses import dataclass

PERIOD_S = 60.0
MOST_OWED_S = 10.0  # how much longer refused requests may keep a bucket empty


@dataclass(frozen=True)
class Verdict:
    """Whether an amount was taken, and what the bucket then holds; `reset_s` is until it is full.

    `retry_after_s` is 0 if it was taken, and infinite if it is more than the bucket ever holds.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, limit: int, available: float, refused: float = 0.0) -> "Verdict":
        """Of a bucket that has so much available; `refused`: the amount that was not taken."""
        per_second = limit / PERIOD_S
        short = max(refused - available, 0.0) / per_second if refused <= limit else math.inf
        remaining = max(int(available + 1e-6), 0)
        return cls(not refused, limit, remaining, max(limit - available, 0) / per_second, short)


@dataclass
class Bucket:
    """`limit` a minute, and at most that at once. `full_at`: in seconds, on the caller's clock."""

    limit: int
    full_at: float = 0.0

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"a limit of {self.limit} a minute allows nothing: give at least 1")

    def available(self, now: float) -> float:
        """What can be taken now; below 0 while refused requests are owed."""
        return self.limit * min(1 - (self.full_at - now) / PERIOD_S, 1.0)

    def take(self, amount: float, now: float) -> Verdict:
        """Take all of `amount`, or nothing."""
        taken = self.exchange(now, least=amount, most=amount)
        return Verdict.of(self.limit, self.available(now), 0.0 if taken else amount)

    def exchange(
        self,
        now: float,
        *,
        least: float = 0.0,
        most: float = 0.0,
        back: float = 0.0,
        owed: float = 0.0,
    ) -> float:
        """Give `back` what was not used, count what is `owed` for refused requests, and take at
        least `least` and at most `most`, or nothing. Returns how much was taken."""
        seconds = PERIOD_S / self.limit
        self.full_at = max(self.full_at - back * seconds, now)
        if owed:
            most_owed = max(self.full_at, now + PERIOD_S + MOST_OWED_S)
            self.full_at = min(self.full_at + owed * seconds, most_owed)
        available = self.available(now)
        if available < least - 1e-6:  # sums of floats are not exact
            return 0.0
        taken = min(most, max(least, available))
        self.full_at += taken * seconds
        return taken
