"""Several engines as one: which of them answers a request. Knows no processes and no HTTP."""

import dataclasses
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from adapters_store.manifest import AdapterRef
from server.errors import QueueFull, Unavailable
from server.replicas.connection import EngineConnection
from server.replicas.messages import EngineFacts
from server.replicas.replica import OnReady, Replica
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, Listener, LoopStats

_SLACK = 8  # answers that a replica may have above the least busy and still be preferred
_SLACK_SHARE = 0.25  # or this share of what the least busy has, if that is more
_HOMES = 100_000  # adapters whose replicas are remembered


@dataclass(frozen=True)
class FleetHandle(Handle):
    """A submitted request, for `cancel`: whom it was given to, and under which key."""

    link: EngineConnection
    first: int


class Fleet:
    """What `ServingLoop` is to the API, over one or more replicas. Thread-safe.

    A request goes to the least busy replica, but an adapter stays where it was sent before unless
    those replicas are much busier: there it is in a slot, and the keys and values of its prompts
    may be there still.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = tuple(replicas)
        self._lock = threading.Lock()
        self._homes: OrderedDict[AdapterRef, list[EngineConnection]] = OrderedDict()
        self._facts: EngineFacts | None = None

    def start(self) -> None:
        """Start all replicas and wait until they are ready. Raises what keeps one from it."""
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            self._facts = replica.wait().facts

    def stop(self, drain_timeout_s: float) -> None:
        """Let running answers end, as `ServingLoop.stop`, and end all processes."""
        with ThreadPoolExecutor(len(self.replicas)) as threads:
            list(threads.map(lambda replica: replica.stop(drain_timeout_s), self.replicas))

    def on_ready(self, welcome: OnReady) -> None:
        """Have `welcome` called with each replica that is started again, before it is asked."""
        for replica in self.replicas:
            replica.on_ready = welcome

    @property
    def facts(self) -> EngineFacts:
        """What the engines told of themselves when they started."""
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
        """For adapters, over all replicas."""
        return self.facts.slots * len(self.replicas)

    @property
    def alive(self) -> bool:
        """True while some replica takes requests."""
        return any(replica.alive for replica in self.replicas)

    @property
    def links(self) -> list[EngineConnection]:
        """The replicas that can be asked now."""
        links: list[EngineConnection] = []
        for replica in self.replicas:
            try:
                links.append(replica.link)
            except Unavailable:
                continue
        return links

    def submit(self, request: Generation, listener: Listener) -> FleetHandle:
        """See `ServingLoop.submit`; the listener hears of it from a replica's thread."""
        refusal: Exception | None = None
        for link in self._in_order(request.adapter):
            try:
                first = link.submit(request, listener)
            except (QueueFull, Unavailable) as error:
                refusal = refusal or error
                continue
            if request.adapter is not None:
                self._remember(request.adapter, link)
            return FleetHandle((), link, first)
        raise refusal or Unavailable(
            "the engine is being started again; try again in a moment, and see /health"
        )

    def cancel(self, handle: Handle) -> None:
        """See `ServingLoop.cancel`."""
        assert isinstance(handle, FleetHandle), "it was not given by `submit`"
        handle.link.cancel(handle.first)

    def stats(self) -> LoopStats:
        """The sum over the replicas that answer."""
        told: Counter[str] = Counter()
        names: Counter[str] = Counter()
        for stats in self.told("stats"):
            assert isinstance(stats, LoopStats)
            names.update(stats.by_adapter_running)
            told.update({name: value for name, value in _numbers(stats)})
        return LoopStats(**told, by_adapter_running=dict(names))

    def told(self, name: str) -> Iterator[object]:
        """What a function of each replica returns, of those that answer."""
        for link in self.links:
            try:
                yield link.call(name)
            except Unavailable:  # it ended just now
                continue

    def _in_order(self, adapter: AdapterRef | None) -> list[EngineConnection]:
        """Whom to ask first."""
        links = sorted(self.links, key=lambda link: link.room.queued)
        if adapter is None or len(links) < 2:
            return links
        with self._lock:
            homes = self._homes.get(adapter, ())
        least = links[0].room.queued
        most = least + max(_SLACK, _SLACK_SHARE * least)
        preferred = [link for link in links if link in homes and link.room.queued <= most]
        return [*preferred, *(link for link in links if link not in preferred)]

    def _remember(self, adapter: AdapterRef, link: EngineConnection) -> None:
        with self._lock:
            # A replica that was started again has another link: what it held is forgotten with it.
            homes = [home for home in self._homes.get(adapter, ()) if home is not link]
            self._homes[adapter] = [link, *homes][: len(self.replicas)]
            self._homes.move_to_end(adapter)
            if len(self._homes) > _HOMES:
                self._homes.popitem(last=False)


def _numbers(stats: LoopStats) -> Iterator[tuple[str, int]]:
    for field in dataclasses.fields(stats):
        value = getattr(stats, field.name)
        if isinstance(value, int):
            yield field.name, value
