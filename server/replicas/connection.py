"""One connection to an engine that is ready, and its open requests. Knows no processes."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Final

from server.engine.sequence import FinishReason
from server.errors import Unavailable
from server.replicas import messages
from server.replicas.outbox import Outbox
from server.scheduler.capacity import Capacity
from server.scheduler.request import Generation, Listener, TextDelta, TokenPiece, TokenSink

log = logging.getLogger(__name__)

PATIENCE_S: Final = 0.4
"""Seconds to wait for what is only to be shown. /metrics must answer within a second."""
_CALL_TIMEOUT_S: Final = 5.0


class EngineConnection:
    """Sends requests and calls to an engine, and hands on what it answers.

    Thread-safe, but `receive` and `fail` belong to the thread that reads the connection.

    Attributes:
        capacity: counts the open answers, by the engine's own limits.
        stopped: set when the engine has ended all answers, or is gone.
    """

    def __init__(
        self, connection: "Connection[object, object]", facts: messages.EngineFacts
    ) -> None:
        self.facts = facts
        self.capacity = Capacity(max_answers=facts.max_answers, max_context=facts.max_context)
        self.stopped = threading.Event()
        self._outbox: Outbox[messages.ToEngine] = Outbox(connection)
        self._lock = threading.Lock()
        self._open = True
        self._next_key = 0
        self._answers: dict[int, tuple[Listener, int, str]] = {}  # its index, and its owner
        self._token_sinks: dict[int, TokenSink] = {}
        self._flushes: frozenset[Callable[[], None]] = frozenset()
        self._calls: dict[int, Future[object]] = {}
        self._asked: dict[str, Future[object]] = {}  # the last of each name
        self._known: dict[str, object] = {}  # what it gave
        self._late: Future[object] | None = None  # a call that was waited for in vain

    def submit(self, request: Generation, listener: Listener) -> int:
        """Send a request. Returns the key of its first answer, for `cancel`.

        Raises as `ServingLoop.submit`.
        """
        with self._lock:
            self._check_open()
            self.capacity.enter(request, time.monotonic())
            first = self._next_key
            self._next_key += request.n
            for index in range(request.n):
                self._answers[first + index] = listener, index, request.owner
                self._token_sinks[first + index] = partial(self._first_token, first + index)
            self._flushes |= {listener.flush}  # another set: the reader may be going through it
        self._outbox.put(messages.Submit(first, request))
        return first

    def cancel(self, first: int) -> None:
        """Stop a request's answers. Their listeners get a last update."""
        self._outbox.put(messages.Cancel(first))

    def start_call(self, name: str, *arguments: object) -> "Future[object]":
        """Run a function of the engine's process; the future has what it returns or raises.

        Raises:
            Unavailable: the connection takes nothing more.
        """
        result: Future[object] = Future()
        with self._lock:
            self._check_open()
            number = self._next_key
            self._next_key += 1
            self._calls[number] = result
        self._outbox.put(messages.Call(number, name, arguments))
        return result

    def call(self, name: str, *arguments: object) -> object:
        """`start_call`, and wait for the result. Never on the thread that reads the connection."""
        result = self.start_call(name, *arguments)
        try:
            return result.result(0 if self._is_late() else _CALL_TIMEOUT_S)
        except TimeoutError:
            self._late = result
            raise Unavailable(
                f"the engine did not answer the call {name!r} within {_CALL_TIMEOUT_S:g} s; try "
                "again, and see /health"
            ) from None

    def ask(self, name: str) -> "Question":
        """Start a call whose result is only to be shown, unless such a call is under way."""
        asked = self._asked.get(name)
        if asked is None or asked.done():
            asked = self._asked[name] = self.start_call(name)
        return Question(self, name, asked)

    def answer(self, name: str, result: "Future[object]", timeout_s: float) -> object:
        """See `Question.answer`."""
        try:
            self._known[name] = result.result(0 if self._is_late() else max(timeout_s, 0))
        except TimeoutError:
            self._late = result
        return self._known.get(name)

    def _is_late(self) -> bool:
        """Whether the engine owes the result of a call that somebody has given up."""
        return self._late is not None and not self._late.done()

    def stop(self, drain_timeout_s: float) -> None:
        """Let no new request in, and have the engine end the others; `stopped` tells when."""
        with self._lock:
            self._open = False
        self._outbox.put(messages.Stop(drain_timeout_s))

    def receive(self, message: messages.FromEngine) -> None:
        """Hand on a message to those whom it concerns."""
        match message:
            case messages.AnswerUpdates():
                self._deliver(message)
            case messages.CallResult(number, value):
                self._calls.pop(number).set_result(value)
            case messages.CallFailed(number, error):
                self._calls.pop(number).set_exception(error)
            case messages.Stopped():
                self.stopped.set()
            case _:
                log.error("the engine sent %r although it was ready already", message)

    def fail(self, error: Exception) -> None:
        """The engine is gone: all open answers and calls end with `error`."""
        with self._lock:
            self._open = False
        for listener, index, _ in self._answers.values():
            self._hear(listener, TextDelta(index, finish=FinishReason.ERROR, error=error))
        self._answers.clear()
        self._token_sinks.clear()
        for call in self._calls.values():
            call.set_exception(error)
        self._calls.clear()
        self._flush()
        self.stopped.set()
        self._outbox.close()

    def _check_open(self) -> None:
        if not self._open:
            raise Unavailable("the engine takes no requests now; try again in a moment")

    def _deliver(self, updates: messages.AnswerUpdates) -> None:
        sinks = self._token_sinks
        for key, token_id, text in zip(updates.keys, updates.token_ids, updates.texts, strict=True):
            sink = sinks[key]
            try:
                sink(token_id, text)
            except Exception:  # one listener's fault must not cost the others their answers
                log.exception("a listener failed; its answer continues without token %d", token_id)
        for key, deltas in updates.others.items():
            for delta in deltas:
                self._hear(self._answers[key][0], delta)
            if deltas[-1].finish is not None:
                self._forget(key)
        self._flush()

    def _first_token(self, key: int, token_id: int, text: str) -> None:
        """The sink of an answer that has no token yet."""
        listener, index, _ = self._answers[key]
        self._token_sinks[key] = listener.token_sink(index)
        listener.hear(TextDelta(index, text, (TokenPiece(token_id, text),)))

    def _forget(self, key: int) -> None:
        with self._lock:
            _, _, owner = self._answers.pop(key)
            del self._token_sinks[key]
        self.capacity.leave(owner, time.monotonic())

    def _hear(self, listener: Listener, delta: TextDelta) -> None:
        try:
            listener.hear(delta)
        except Exception:
            log.exception("a listener failed; its answer continues without this update")

    def _flush(self) -> None:
        for flush in self._flushes:
            flush()


@dataclass(frozen=True)
class Question:
    """A call whose result is only to be shown."""

    connection: EngineConnection
    name: str
    result: "Future[object]"

    def answer(self, timeout_s: float) -> object:
        """The result. If it does not come in time: the last one of that name, or None. An engine
        that was late is not waited for again until it answers. Raises Unavailable."""
        return self.connection.answer(self.name, self.result, timeout_s)
