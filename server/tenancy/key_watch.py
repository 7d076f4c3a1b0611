"""Keeps what a process remembers of keys, shares and limits true. Knows no requests."""

from collections.abc import Iterator
from contextlib import contextmanager

from server.tenancy.keys import Keys
from server.tenancy.limits.request_limits import RequestLimits
from server.tenancy.repeating import attempt, repeating
from server.tenancy.shares import Shares

REFRESH_S = 0.5  # a revoked key is refused within a second
_WRITE_S = 5.0
_OLD = "keys, shares or limits are not up to date"


@contextmanager
def watching_keys(
    keys: Keys,
    limits: RequestLimits | None = None,
    shares: Shares | None = None,
    *,
    refresh_s: float = REFRESH_S,
    write_s: float = _WRITE_S,
) -> Iterator[None]:
    """Forget changed keys and shares, learn of changed limits, and write what was used, until the
    end of the context. It begins once they are read, so that no request waits for that on the event
    loop, and each owner's own limits hold for the first one.

    In threads of their own, since a write may wait for others' and a revoked key must not.
    """
    limits = limits or RequestLimits()
    refreshed = (keys.refresh, limits.refresh, *((shares.refresh,) if shares else ()))
    tasks = (
        *((task, refresh_s) for task in (*refreshed, limits.tidy)),
        (keys.write_uses, write_s),
    )

    def at_end() -> None:
        keys.write_uses()
        limits.close()

    for task in refreshed:
        attempt(task, _OLD)
    with repeating(_OLD, *tasks, at_end=at_end):
        yield
