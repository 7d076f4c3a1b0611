"""Sends messages at once where that takes no waiting, and otherwise from a thread of its own."""

import logging
import pickle
import select
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

_AT_ONCE = 1 << 16  # bytes: Linux says that a socket can be written to when it takes more than that

T = TypeVar("T")


class Outbox(Generic[T]):
    """Sends what is put in, in order, as lists of messages; starts its thread.

    Who puts something in sends it, unless the other side is busy: then the thread does, and what
    gathers meanwhile goes as one packet. A reader that falls behind gets fewer and larger packets,
    and nobody who says something waits for a socket. A thread for every packet would want the
    interpreter's lock just when whoever woke it has more to do.
    """

    def __init__(self, connection: "Connection[object, object]") -> None:
        self._connection = connection
        self._writable = select.poll()
        self._writable.register(connection.fileno(), select.POLLOUT)
        self._items: deque[T] = deque()
        self._packet = b""  # made, and not yet sent
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Send it soon. From any thread; what comes after the other side is gone is dropped."""
        self._items.append(item)
        # Whoever holds the lock looks at the items again when it has let go.
        while self._items and not self._closed and self._sending.acquire(blocking=False):
            try:
                if not self._send(wait=False):
                    self._wake.set()
                    return
            finally:
                self._sending.release()

    def close(self) -> None:
        """Send what is there and end the thread. The connection stays open."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()  # before looking: what comes from here on wakes again
            while self._items or self._packet:
                with self._sending:
                    self._send(wait=True)

    def _send(self, *, wait: bool) -> bool:
        """Send all that is there, by who holds the lock. False: that would take waiting."""
        try:
            if not self._packet:
                items = [self._items.popleft() for _ in range(len(self._items))]
                if not items:
                    return True
                self._packet = pickle.dumps(items, protocol=5)
            if not wait and (len(self._packet) > _AT_ONCE or not self._writable.poll(0)):
                return False
            self._connection.send_bytes(self._packet)
            self._packet = b""
        except OSError:  # the other side is gone; whoever reads the connection will know
            self._end()
        except Exception:
            log.exception("a message could not be made")
            self._end()
            self._connection.close()
        return True

    def _end(self) -> None:
        self._closed = True
        self._items.clear()
        self._packet = b""
        self._wake.set()
