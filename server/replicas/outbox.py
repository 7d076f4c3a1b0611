"""Sends messages from a thread of its own: no sender waits for a socket. Knows no engine."""

import logging
import pickle
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Outbox(Generic[T]):
    """Sends messages in the order of `put`; starts its thread.

    Messages that gather while the other side is busy go as one packet, a list: a reader that falls
    behind gets fewer and larger packets.
    """

    def __init__(self, connection: "Connection[object, object]") -> None:
        self._connection = connection
        self._items: deque[T] = deque()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Send it soon; from any thread. Dropped if the other side is gone."""
        self._items.append(item)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Send what was put and end the thread. The connection stays open."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed:
                self._wake.wait()
                self._wake.clear()  # before sending: a later `put` wakes again
                self._send()
        except OSError:  # the other side is gone; the thread that reads the connection notices
            self._closed = True
        except Exception:
            log.exception("a message could not be pickled: the connection is closed")
            self._closed = True
            self._connection.close()

    def _send(self) -> None:
        items = [self._items.popleft() for _ in range(len(self._items))]
        if items:
            self._connection.send_bytes(pickle.dumps(items, protocol=5))
