"""Adapters in the memory of several engines, as if they were one. Knows no requests."""

import contextlib
import threading
from dataclasses import replace
from typing import cast

from adapters_store.manifest import AdapterRef
from server.adapters.adapter_status import AdapterState, AdapterStatus
from server.errors import Unavailable
from server.replicas.connection import EngineConnection
from server.replicas.fleet import Fleet

_STATES = tuple(AdapterState)  # the nearest to the device first


class FleetResidency:
    """What `ResidentAdapters` is to the API. A pin holds in all replicas, restarted ones too."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pins: set[AdapterRef] = set()
        self._lock = threading.Lock()  # guards the pins; never held while waiting for a replica
        fleet.on_ready(self._restore_pins)

    @property
    def slots(self) -> int:
        """Over all replicas, whether they run or not."""
        return self._fleet.slots

    @property
    def loads(self) -> int:
        """Since the processes started; so are `evictions` and `hits`."""
        return self._counts()[0]

    @property
    def evictions(self) -> int:
        return self._counts()[1]

    @property
    def hits(self) -> int:
        return self._counts()[2]

    def pin(self, ref: AdapterRef) -> None:
        """See `ResidentAdapters.pin`; either all replicas pin it, or none.

        Raises:
            Conflict: no slot would be left for the others.
            Unavailable: no replica runs.
        """
        connections, pinned = self._connections(), []
        try:
            for connection in connections:
                connection.call("pin", ref)
                pinned.append(connection)
        except Exception:
            for connection in pinned:
                connection.start_call("unpin", ref)
            raise
        with self._lock:
            self._pins.add(ref)

    def unpin(self, ref: AdapterRef) -> None:
        """See `ResidentAdapters.unpin`."""
        with self._lock:
            self._pins.discard(ref)
        for connection in self._fleet.connections:
            connection.call("unpin", ref)

    def forget(self, ref: AdapterRef) -> None:
        """See `ResidentAdapters.forget`. A replica that is not running has nothing to forget."""
        with self._lock:
            self._pins.discard(ref)
        for connection in self._fleet.connections:
            with contextlib.suppress(Unavailable):  # it ended just now
                connection.call("forget", ref)

    def snapshot(self) -> list[AdapterStatus]:
        """Every adapter in some replica's memory, once: its nearest state, and sums."""
        by_ref: dict[AdapterRef, AdapterStatus] = {}
        for statuses in self._fleet.call_each("snapshot"):
            for status in cast(list[AdapterStatus], statuses):
                other = by_ref.get(status.ref)
                by_ref[status.ref] = status if other is None else _summed(status, other)
        return list(by_ref.values())

    def _connections(self) -> list[EngineConnection]:
        connections = self._fleet.connections
        if not connections:
            raise Unavailable("the engine is being started again; try again in a moment")
        return connections

    def _counts(self) -> tuple[int, int, int]:
        counts = [cast("tuple[int, int, int]", it) for it in self._fleet.call_each("counts")]
        loads, evictions, hits = (sum(column) for column in zip((0, 0, 0), *counts, strict=True))
        return loads, evictions, hits

    def _restore_pins(self, connection: EngineConnection) -> None:
        """Pin in a replica that was started again what is pinned."""
        with self._lock:
            for ref in self._pins:
                # Without waiting: this runs on the thread that would read the answer.
                connection.start_call("pin", ref)


def _summed(one: AdapterStatus, other: AdapterStatus) -> AdapterStatus:
    nearest = min(one, other, key=lambda each: _STATES.index(each.state))
    return replace(
        nearest,
        in_use=one.in_use + other.in_use,
        bytes=max(one.bytes, other.bytes),
        pinned=one.pinned or other.pinned,
    )
