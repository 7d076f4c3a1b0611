"""One connection to an engine that is ready, and what was asked over it. Knows no processes."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Protocol, cast

from server.engine.sequence import FinishReason
from server.errors import Unavailable
from server.replicas.messages import (
    AnswerUpdates,
    Call,
    CallFailed,
    CallResult,
    Cancel,
    EngineFacts,
    FromEngine,
    Stop,
    Stopped,
    Submit,
    ToEngine,
)
from server.replicas.outbox import Outbox
from server.scheduler.capacity import Capacity
from server.scheduler.request import Generation, Listener, TextDelta, taker_of

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0


class Ear(Protocol):
    """A listener that needs no call of its own for a token: most of the time here would be that.

    The first token of an answer, and whatever is not plain (see `AnswerUpdates`), it hears as
    others do.
    """

    def text_taker(self, index: int) -> Callable[[str], object]:
        """What takes the texts of an answer's plain tokens."""

    @property
    def told(self) -> Callable[[], None]:
        """To be called when texts were taken. One and the same for many."""


class EngineConnection:
    """What waits for an engine's word. Thread-safe; `take` and `fail` are the reader's.

    `room` counts its answers, by the engine's own limits.
    """

    def __init__(self, connection: "Connection[object, object]", facts: EngineFacts) -> None:
        self.facts = facts
        self.room = Capacity(capacity=facts.max_answers, max_context=facts.max_context)
        self.stopped = threading.Event()
        self._outbox: Outbox[ToEngine] = Outbox(connection)
        self._lock = threading.Lock()
        self._open = True
        self._next = 0
        self._listeners: dict[int, Listener] = {}
        self._indices: dict[int, int] = {}
        self._takers: dict[int, Callable[[str], object]] = {}  # of answers that have begun
        self._told: set[Callable[[], None]] = set()
        self._calls: dict[int, Future[object]] = {}

    def submit(self, request: Generation, listener: Listener) -> int:
        """Ask. Returns the key of the first answer, for `cancel`.

        Raises as `ServingLoop.submit`.
        """
        with self._lock:
            self._check_open()
            self.room.enter(request, time.monotonic())
            first = self._next
            self._next += request.n
            for index in range(request.n):
                self._listeners[first + index] = listener
                self._indices[first + index] = index
        self._outbox.put(Submit(first, request))
        return first

    def cancel(self, first: int) -> None:
        """Stop a request's answers; their listeners hear of it."""
        self._outbox.put(Cancel(first))

    def ask(self, name: str, *arguments: object) -> "Future[object]":
        """Run a function of the engine's process; the future has what it returns or raises.

        Raises:
            Unavailable: nothing can be asked any more.
        """
        result: Future[object] = Future()
        with self._lock:
            self._check_open()
            number = self._next
            self._next += 1
            self._calls[number] = result
        self._outbox.put(Call(number, name, arguments))
        return result

    def call(self, name: str, *arguments: object) -> object:
        """`ask`, and wait for what it returns or raises. Never on the thread that hears it."""
        try:
            return self.ask(name, *arguments).result(_CALL_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(f"the engine was asked to {name} and did not answer") from None

    def stop(self, drain_timeout_s: float) -> None:
        """Let no new request in, and have the engine end the others; `stopped` tells when."""
        with self._lock:
            self._open = False
        self._outbox.put(Stop(drain_timeout_s))

    def take(self, message: FromEngine) -> None:
        """Hand on what the engine said."""
        match message:
            case AnswerUpdates():
                self._tell(message)
            case CallResult(number, value):
                self._calls.pop(number).set_result(value)
            case CallFailed(number, error):
                self._calls.pop(number).set_exception(error)
            case Stopped():
                self.stopped.set()
            case _:
                log.error("the engine said %r when it was ready already", message)

    def fail(self, error: Exception) -> None:
        """The engine is gone: everybody who waits for it hears `error`."""
        with self._lock:
            self._open = False
        for key, listener in self._listeners.items():
            self._hear(
                listener, TextDelta(self._indices[key], finish=FinishReason.ERROR, error=error)
            )
        self._listeners.clear()
        self._takers.clear()
        for call in self._calls.values():
            call.set_exception(error)
        self._calls.clear()
        self.stopped.set()
        self._outbox.close()

    def _check_open(self) -> None:
        if not self._open:
            raise Unavailable("the engine takes no requests now; try again in a moment")

    def _tell(self, news: AnswerUpdates) -> None:
        takers = self._takers
        for key, token_id, text in zip(news.keys, news.token_ids, news.texts, strict=True):
            take = takers.get(key)
            if take is None:
                self._begin(key, token_id, text)
            else:
                take(text)
        for key, deltas in news.others.items():
            for delta in deltas:
                self._hear(self._listeners[key], delta)
            if deltas[-1].finish is not None:
                self._forget(key)
        for told in self._told:
            told()

    def _begin(self, key: int, token_id: int, text: str) -> None:
        """An answer's first plain token; or any, if its listener hears all alike."""
        listener, index = self._listeners[key], self._indices[key]
        try:
            taker_of(listener, index)(token_id, text)
        except Exception:
            log.exception("a listener failed")
        if hasattr(listener, "text_taker"):  # isinstance would take longer than all the rest
            ear = cast(Ear, listener)
            self._takers[key] = ear.text_taker(index)
            self._told.add(ear.told)

    def _forget(self, key: int) -> None:
        with self._lock:
            del self._listeners[key], self._indices[key]
        self._takers.pop(key, None)
        self.room.leave(time.monotonic())

    def _hear(self, listener: Listener, delta: TextDelta) -> None:
        try:
            listener(delta)
        except Exception:  # one listener's fault must not cost the others their answers
            log.exception("a listener failed")
