"""The engine's side: passes messages to the serving loop, and its updates back. Knows no torch."""

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
from server.replicas import messages
from server.replicas.messages import AnswerUpdates
from server.replicas.outbox import Outbox
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, TextDelta, TokenSink

log = logging.getLogger(__name__)

_POLL_S = 0.5  # how late it may be noticed that the loop has ended by itself


class Loop(Engine, Protocol):
    """`server.scheduler.loop.ServingLoop`."""

    def stop(self, drain_timeout_s: float) -> None: ...


class ColocatedWorker(Worker, Protocol):
    """`server.training.colocated.training_thread.TrainingThread`."""

    def stop(self) -> None: ...


@dataclass
class _OpenRequest:
    answers_left: int
    handle: Handle | None = None


class _RequestListener:
    """A `Listener` that packs the answers to one request, on the loop's thread."""

    def __init__(self, process: "EngineProcess", first: int) -> None:
        self._process = process
        self._first = first
        self.flush = process.send_updates

    def hear(self, update: TextDelta) -> None:
        self._process.add_update(self._first, update)

    def token_sink(self, index: int) -> TokenSink:
        return partial(self._process.add_token, self._first + index)


class EngineProcess:
    """Runs a loop for another process, until that process is gone.

    Args:
        worker: trains in this process; None: no training here.
    """

    def __init__(
        self,
        connection: "Connection[object, object]",
        loop: Loop,
        residency: Residency,
        metrics: Metrics,
        worker: ColocatedWorker | None = None,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._worker = worker
        self._outbox: Outbox[messages.FromEngine] = Outbox(connection)
        self._updates = AnswerUpdates()  # of this step; for the loop's thread alone
        self._requests: dict[int, _OpenRequest] = {}
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

    def run(self, facts: messages.EngineFacts) -> None:
        """Send Ready, then handle messages.

        Raises:
            EOFError: the other process is gone.
            Unavailable: the loop has ended by itself.
        """
        self._outbox.put(messages.Ready(facts))
        while True:
            if self._connection.poll(_POLL_S):
                packet = pickle.loads(self._connection.recv_bytes())
                for message in cast(list[messages.ToEngine], packet):
                    self._handle(message)
            if not self._loop.alive and not self._stopping:
                raise Unavailable("the engine's loop has ended; the log above says why")

    def _handle(self, message: messages.ToEngine) -> None:
        match message:
            case messages.Submit(first, request):
                self._submit(first, request)
            case messages.Cancel(first):
                open_request = self._requests.get(first)
                if open_request is not None and open_request.handle is not None:
                    self._loop.cancel(open_request.handle)
            case messages.Call():
                self._outbox.put(self._result(message))
            case messages.Stop(drain_timeout_s):
                self._stopping = True
                threading.Thread(target=self._stop, args=(drain_timeout_s,), daemon=True).start()

    def _submit(self, first: int, request: Generation) -> None:
        open_request = self._requests[first] = _OpenRequest(request.n)
        try:
            open_request.handle = self._loop.submit(request, _RequestListener(self, first))
        except Exception as error:  # rare: the other process checks the same limits first
            del self._requests[first]
            updates, reason = AnswerUpdates(), _sendable(error)
            for index in range(request.n):
                delta = TextDelta(index, finish=FinishReason.ERROR, error=reason)
                updates.add(first + index, delta)
            self._outbox.put(updates)

    def add_update(self, first: int, delta: TextDelta) -> None:
        """Pack an update of an answer; on the loop's thread."""
        self._updates.add(first + delta.index, delta)
        if delta.finish is not None:
            open_request = self._requests[first]
            open_request.answers_left -= 1
            if not open_request.answers_left:
                del self._requests[first]

    def add_token(self, key: int, token_id: int, text: str) -> None:
        """Pack a plain token; on the loop's thread."""
        self._updates.add_token(key, token_id, text)

    def send_updates(self) -> None:
        """Send all updates of a step as one message; on the loop's thread.

        A message a token would wake the outbox's thread at the first one, only to wait for the
        interpreter's lock until the step's last.
        """
        if self._updates:
            updates, self._updates = self._updates, AnswerUpdates()
            self._outbox.put(updates)

    def _result(self, call: messages.Call) -> messages.CallResult | messages.CallFailed:
        try:
            return messages.CallResult(call.number, self._calls[call.name](*call.arguments))
        except Exception as error:
            return messages.CallFailed(call.number, _sendable(error))

    def _stop(self, drain_timeout_s: float) -> None:
        if self._worker is not None:  # it returns its jobs to the queue while answers end
            self._worker.stop()
        self._loop.stop(drain_timeout_s)
        self._outbox.put(messages.Stopped())


def _sendable(error: Exception) -> Exception:
    """An error that can be pickled; other errors than ours become Unavailable and are logged."""
    if isinstance(error, VerandahError | StoreError):
        return error
    log.error("the engine failed", exc_info=error)
    return Unavailable(f"the engine failed ({type(error).__name__}); its log says why")
