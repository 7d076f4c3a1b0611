"""What the loop measures, told to whoever counts. Knows no metrics library."""

from typing import Protocol

from server.engine.sequence import Sequence
from server.scheduler.answer import Times


class Observer(Protocol):
    """Hears of every step, token and end, on the engine's thread; must return at once."""

    def step(self, num_tokens: int) -> None:
        """A step ran `num_tokens` tokens."""

    def token(self, times: Times, now: float) -> None:
        """An answer got a token; sets `times.first_token` and `times.last_token`."""

    def preempted(self) -> None:
        """An answer lost its memory and will be computed again."""

    def finished(self, times: Times, sequence: Sequence, now: float) -> None:
        """An answer ended; `sequence.finish` says how."""
