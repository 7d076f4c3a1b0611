"""Runs what a process repeats for as long as it serves, each in a thread of its own."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.errors import Unavailable

log = logging.getLogger(__name__)

Task = Callable[[], None]


@contextmanager
def repeating(what: str, *tasks: tuple[Task, float], at_end: Task) -> Iterator[None]:
    """Repeat each task so many seconds after it has ended, until the end of the context.

    Args:
        what: it is that gets old while a task fails, for the log.
        at_end: called once when all have stopped.
    """
    stop = threading.Event()

    def repeat(task: Task, every_s: float) -> None:
        while not stop.wait(every_s):
            attempt(task, what)

    threads = [threading.Thread(target=repeat, args=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        attempt(at_end, what)


def attempt(task: Task, what: str) -> None:
    """Call a task; what it raises is logged."""
    try:
        task()
    except Unavailable as error:
        log.info("%s: %s", what, error)
    except Exception:  # later turns may succeed
        log.exception("%s", what)
