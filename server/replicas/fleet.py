"""Several engines as one: chooses the replica for each request. Knows no processes and no HTTP."""

import contextlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from adapters_store.manifest import AdapterRef
from server.errors import QueueFull, Unavailable
from server.replicas.connection import PATIENCE_S, EngineConnection, Question
from server.replicas.messages import EngineFacts
from server.replicas.replica import OnReady, Replica
from server.scheduler.intake import Handle
from server.scheduler.request import DeviceMemory, Generation, Listener, LoopStats

_SLACK = 8  # answers that a replica may have above the least busy and still be preferred
_SLACK_SHARE = 0.25  # or this share of what the least busy has, if that is more
_MAX_HOMES = 100_000  # adapters whose replicas are remembered


@dataclass(frozen=True)
class FleetHandle(Handle):
    """A submitted request, for `cancel`: the connection it was sent over, and its first key."""

    connection: EngineConnection
    first: int


class Fleet:
    """What `ServingLoop` is to the API, over one or more replicas. Thread-safe.

    A request goes to the least busy replica. But one for an adapter goes to a replica that had that
    adapter before, unless it is much busier: the adapter is in a slot there, and keys and values of
    its prompts may be in memory still.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = tuple(replicas)
        self._lock = threading.Lock()
        self._homes: OrderedDict[AdapterRef, list[EngineConnection]] = OrderedDict()
        self._facts: EngineFacts | None = None

    def start(self) -> None:
        """Start all replicas and wait until they are ready. Raises as `Replica.wait`."""
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            self._facts = replica.wait().facts

    def stop(self, drain_timeout_s: float) -> None:
        """Let running answers end, as `ServingLoop.stop`, and end all processes."""
        with ThreadPoolExecutor(len(self.replicas)) as threads:
            list(threads.map(lambda replica: replica.stop(drain_timeout_s), self.replicas))

    def on_ready(self, callback: OnReady) -> None:
        """Call `callback` with the connection of each replica that starts, before it is used."""
        for replica in self.replicas:
            replica.on_ready = callback

    @property
    def facts(self) -> EngineFacts:
        """What the engines reported about themselves when they started."""
        assert self._facts is not None, "the fleet was not started"
        return self._facts

    @property
    def max_context(self) -> int:
        return self.facts.max_context

    @property
    def max_answers(self) -> int:
        """Of one replica: a request is never divided."""
        return self.facts.max_answers

    @property
    def slots(self) -> int:
        """Adapter slots, over all replicas."""
        return self.facts.slots * len(self.replicas)

    @property
    def alive(self) -> bool:
        """True while some replica takes requests."""
        return any(replica.alive for replica in self.replicas)

    @property
    def connections(self) -> list[EngineConnection]:
        """Those to the replicas that run now."""
        every = [replica.connection for replica in self.replicas]
        return [connection for connection in every if connection is not None]

    def submit(self, request: Generation, listener: Listener) -> FleetHandle:
        """See `ServingLoop.submit`; the listener is called on a replica's thread."""
        refusal: Exception | None = None
        for connection in self._in_order(request.adapter):
            try:
                first = connection.submit(request, listener)
            except (QueueFull, Unavailable) as error:
                refusal = refusal or error
                continue
            if request.adapter is not None:
                self._remember(request.adapter, connection)
            return FleetHandle((), connection, first)
        raise refusal or Unavailable(
            "the engine hangs or is being started again; try again in a moment, and see /health"
        )

    def cancel(self, handle: Handle) -> None:
        """See `ServingLoop.cancel`."""
        assert isinstance(handle, FleetHandle), "the handle is not of this fleet's `submit`"
        handle.connection.cancel(handle.first)

    def stats(self) -> LoopStats:
        """Sums over the replicas that answer."""
        every = [cast(LoopStats, stats) for stats in self.call_each("stats")]
        names = sum((Counter(it.by_adapter_running) for it in every), Counter[str]())
        return LoopStats(
            running=sum(it.running for it in every),
            waiting=sum(it.waiting for it in every),
            kv_blocks_used=sum(it.kv_blocks_used for it in every),
            kv_blocks_total=sum(it.kv_blocks_total for it in every),
            by_adapter_running=dict(names),
            memory=sum((it.memory for it in every), DeviceMemory()),
        )

    def call_each(self, name: str) -> Iterator[object]:
        """The results of calling `name` in each replica that runs; one that does not answer in time
        gives what it gave last."""
        questions: list[Question] = []
        for connection in self.connections:
            with contextlib.suppress(Unavailable):  # it ended just now
                questions.append(connection.ask(name))
        end = time.monotonic() + PATIENCE_S
        for question in questions:
            with contextlib.suppress(Unavailable):
                answer = question.answer(end - time.monotonic())
                if answer is not None:
                    yield answer

    def _in_order(self, adapter: AdapterRef | None) -> list[EngineConnection]:
        """Connections to replicas that make progress, the preferred one first."""
        every = [replica.connection for replica in self.replicas if replica.alive]
        connections = sorted(filter(None, every), key=lambda it: it.capacity.queued)
        if adapter is None or len(connections) < 2:
            return connections
        with self._lock:
            homes = self._homes.get(adapter, ())
        least = connections[0].capacity.queued
        most = least + max(_SLACK, _SLACK_SHARE * least)
        preferred = [it for it in connections if it in homes and it.capacity.queued <= most]
        return [*preferred, *(it for it in connections if it not in preferred)]

    def _remember(self, adapter: AdapterRef, connection: EngineConnection) -> None:
        with self._lock:
            # A replica that was started again has another connection, and nothing in memory.
            homes = [home for home in self._homes.get(adapter, ()) if home is not connection]
            self._homes[adapter] = [connection, *homes][: len(self.replicas)]
            self._homes.move_to_end(adapter)
            if len(self._homes) > _MAX_HOMES:
                self._homes.popitem(last=False)
