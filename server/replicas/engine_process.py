"""The engine's side: what comes in over the connection goes to the loop, and news go back."""

import logging
import pickle
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Protocol, cast

from adapters_store.store_errors import StoreError
from server.engine.sequence import FinishReason
from server.errors import Unavailable, VerandahError
from server.interfaces import Engine, Residency, Worker
from server.metrics import Metrics
from server.replicas.messages import (
    AnswerUpdates,
    Call,
    CallFailed,
    CallResult,
    Cancel,
    Facts,
    FromEngine,
    Ready,
    Stop,
    Stopped,
    Submit,
    ToEngine,
)
from server.replicas.outbox import Outbox
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, Taker, TextDelta

log = logging.getLogger(__name__)

_LOOK_S = 0.5  # how late a loop that ended by itself may be noticed


class Loop(Engine, Protocol):
    """`server.scheduler.loop.ServingLoop`."""

    on_told: Callable[[], None]

    def stop(self, drain_timeout_s: float) -> None: ...


class Trainer(Worker, Protocol):
    """`server.training.beside.training_thread.TrainingThread`."""

    def stop(self) -> None: ...


@dataclass
class _Asked:
    """A request under way."""

    left: int
    handle: Handle | None = None


class _Ear:
    """Hears a request's answers on the engine's thread."""

    def __init__(self, child: "EngineProcess", first: int) -> None:
        self._child = child
        self._first = first

    def __call__(self, delta: TextDelta) -> None:
        self._child.hear(self._first, delta)

    def taker(self, index: int) -> Taker:
        return partial(self._child.take, self._first + index)


class EngineProcess:
    """Runs a loop for another process, until that process is gone.

    Args:
        worker: trains in this process; None: nobody does.
    """

    def __init__(
        self,
        connection: "Connection[object, object]",
        loop: Loop,
        residency: Residency,
        metrics: Metrics,
        worker: Trainer | None = None,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._worker = worker
        self._outbox: Outbox[FromEngine] = Outbox(connection)
        self._news = AnswerUpdates()  # of this step; the engine's thread's
        loop.on_told = self._send_news
        self._asked: dict[int, _Asked] = {}
        self._stopping = False
        self._calls: Mapping[str, Callable[..., object]] = {
            "pin": residency.pin,
            "unpin": residency.unpin,
            "forget": residency.forget,
            "snapshot": residency.snapshot,
            "counts": lambda: (residency.loads, residency.evictions, residency.hits),
            "stats": loop.stats,
            "metrics": lambda: list(metrics.registry.collect()),
            "worker": lambda: worker and (worker.alive, worker.restarts),
        }

    def run(self, facts: Facts) -> None:
        """Say that the engine is ready and do as told.

        Raises:
            EOFError: the other process is gone.
            Unavailable: the loop has ended by itself.
        """
        self._outbox.put(Ready(facts))
        while True:
            if self._connection.poll(_LOOK_S):
                for message in cast(list[ToEngine], pickle.loads(self._connection.recv_bytes())):
                    self._obey(message)
            if not self._loop.alive and not self._stopping:
                raise Unavailable("the engine's loop has ended; the log above says why")

    def _obey(self, message: ToEngine) -> None:
        match message:
            case Submit(first, request):
                self._submit(first, request)
            case Cancel(first):
                asked = self._asked.get(first)
                if asked is not None and asked.handle is not None:
                    self._loop.cancel(asked.handle)
            case Call():
                self._outbox.put(self._result(message))
            case Stop(drain_timeout_s):
                self._stopping = True
                threading.Thread(target=self._stop, args=(drain_timeout_s,), daemon=True).start()

    def _submit(self, first: int, request: Generation) -> None:
        asked = self._asked[first] = _Asked(request.n)
        try:
            asked.handle = self._loop.submit(request, _Ear(self, first))
        except Exception as error:  # mostly refused before, by the same limits
            del self._asked[first]
            news, told = AnswerUpdates(), _told(error)
            for index in range(request.n):
                news.add(first + index, TextDelta(index, finish=FinishReason.ERROR, error=told))
            self._outbox.put(news)

    def hear(self, first: int, delta: TextDelta) -> None:
        """On the engine's thread."""
        self._news.add(first + delta.index, delta)
        if delta.finish is not None:
            asked = self._asked[first]
            asked.left -= 1
            if not asked.left:
                del self._asked[first]

    def take(self, key: int, token_id: int, text: str) -> None:
        """A plain token; on the engine's thread."""
        self._news.take(key, token_id, text)

    def _send_news(self) -> None:
        """On the engine's thread, once a step: all that it told goes as one message. A message a
        token would wake the outbox at the first, to wait for the lock until the last is told.
        """
        if self._news:
            news, self._news = self._news, AnswerUpdates()
            self._outbox.put(news)

    def _result(self, call: Call) -> CallResult | CallFailed:
        try:
            return CallResult(call.number, self._calls[call.name](*call.arguments))
        except Exception as error:
            return CallFailed(call.number, _told(error))

    def _stop(self, drain_timeout_s: float) -> None:
        if self._worker is not None:  # its jobs are given back while answers end
            self._worker.stop()
        self._loop.stop(drain_timeout_s)
        self._outbox.put(Stopped())


def _told(error: Exception) -> Exception:
    """An error as another process may hear it: what is not ours may not survive the way."""
    if isinstance(error, VerandahError | StoreError):
        return error
    log.error("the engine failed", exc_info=error)
    return Unavailable(f"the engine failed ({type(error).__name__}); its log says why")
