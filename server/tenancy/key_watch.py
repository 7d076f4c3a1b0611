"""Keeps what a process remembers of keys true. Knows no requests."""

from collections.abc import Iterator
from contextlib import contextmanager

from server.tenancy.keys import Keys
from server.tenancy.repeating import repeating

REFRESH_S = 0.5  # a revoked key is refused within a second
_WRITE_S = 5.0


@contextmanager
def watching_keys(
    keys: Keys, *, refresh_s: float = REFRESH_S, write_s: float = _WRITE_S
) -> Iterator[None]:
    """Forget changed keys, and write when keys were used, until the end of the context.

    In two threads, since a write may wait for others' and a revoked key must not.
    """
    tasks = (keys.refresh, refresh_s), (keys.write_uses, write_s)
    with repeating("keys are not up to date", *tasks, at_end=keys.write_uses):
        yield
