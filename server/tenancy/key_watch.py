"""Keeps what a process remembers of keys true, in two threads of its own. Knows no requests."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.errors import Unavailable
from server.tenancy.keys import Keys

log = logging.getLogger(__name__)

REFRESH_S = 0.5  # a revoked key is refused within a second
_WRITE_S = 5.0


@contextmanager
def watching_keys(
    keys: Keys, *, refresh_s: float = REFRESH_S, write_s: float = _WRITE_S
) -> Iterator[None]:
    """Forget changed keys, and write when keys were used, until the end of the context.

    Apart, since a write may wait for others' and a revoked key must not.
    """
    stop = threading.Event()
    threads = [
        threading.Thread(target=_repeat, args=(task, every, stop), daemon=True)
        for task, every in ((keys.refresh, refresh_s), (keys.write_uses, write_s))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        _try(keys.write_uses)


def _repeat(task: Callable[[], None], every_s: float, stop: threading.Event) -> None:
    while not stop.wait(every_s):
        _try(task)


def _try(task: Callable[[], None]) -> None:
    try:
        task()
    except Unavailable as error:
        log.info("keys are not up to date: %s", error)
    except Exception:  # later turns may succeed
        log.exception("keys are not up to date")
