"""Adapters in the memory of several engines, as if it were one. Knows no requests."""

import contextlib
import threading
from dataclasses import dataclass, replace
from typing import cast

from adapters_store.manifest import AdapterRef
from server.errors import Unavailable
from server.interfaces import Resident
from server.replicas.connection import EngineConnection
from server.replicas.fleet import Fleet

_NEAREST = ("resident", "host", "loading")


@dataclass(frozen=True)
class FleetResident:
    """An adapter in memory: where it is nearest, and what all replicas have of it."""

    ref: AdapterRef
    state: str
    slot: int | None
    bytes: int
    in_use: int
    pinned: bool


class FleetResidency:
    """What `ResidentAdapters` is to the API. A pin holds in all replicas, restarted ones too."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pins: set[AdapterRef] = set()
        self._lock = threading.Lock()  # over the pins; never held while a replica is waited for
        fleet.on_ready(self._welcome)

    @property
    def slots(self) -> int:
        """Of all replicas, whether they run or not."""
        return self._fleet.slots

    @property
    def loads(self) -> int:
        """Since the processes began, as the next two."""
        return self._counts()[0]

    @property
    def evictions(self) -> int:
        return self._counts()[1]

    @property
    def hits(self) -> int:
        return self._counts()[2]

    def pin(self, ref: AdapterRef) -> None:
        """See `ResidentAdapters.pin`; either all replicas hold it then, or none.

        Raises:
            Conflict: no slot would be left for the others.
            Unavailable: no replica runs.
        """
        links, done = self._links(), []
        try:
            for link in links:
                link.call("pin", ref)
                done.append(link)
        except Exception:
            for link in done:
                link.ask("unpin", ref)
            raise
        with self._lock:
            self._pins.add(ref)

    def unpin(self, ref: AdapterRef) -> None:
        """See `ResidentAdapters.unpin`."""
        with self._lock:
            self._pins.discard(ref)
        for link in self._fleet.links:
            link.call("unpin", ref)

    def forget(self, ref: AdapterRef) -> None:
        """See `ResidentAdapters.forget`. A replica that is not running has nothing to forget."""
        with self._lock:
            self._pins.discard(ref)
        for link in self._fleet.links:
            with contextlib.suppress(Unavailable):  # it ended just now
                link.call("forget", ref)

    def snapshot(self) -> list[FleetResident]:
        """Every adapter in some replica's memory, once."""
        seen: dict[AdapterRef, FleetResident] = {}
        for told in self._fleet.told("snapshot"):
            for one in cast(list[Resident], told):
                resident = FleetResident(
                    one.ref, str(one.state), one.slot, one.bytes, one.in_use, one.pinned
                )
                other = seen.get(one.ref)
                seen[one.ref] = resident if other is None else _joined(resident, other)
        return list(seen.values())

    def _links(self) -> list[EngineConnection]:
        links = self._fleet.links
        if not links:
            raise Unavailable("the engine is being started again; try again in a moment")
        return links

    def _counts(self) -> tuple[int, int, int]:
        told = [cast("tuple[int, int, int]", counts) for counts in self._fleet.told("counts")]
        loads, evictions, hits = (sum(column) for column in zip((0, 0, 0), *told, strict=True))
        return loads, evictions, hits

    def _welcome(self, link: EngineConnection) -> None:
        """Have a replica that was started again hold what is pinned."""
        with self._lock:
            for ref in self._pins:
                # Without waiting: the thread that would hear the answer is the one that calls this.
                link.ask("pin", ref)


def _joined(one: FleetResident, other: FleetResident) -> FleetResident:
    nearest = min(one, other, key=lambda each: _NEAREST.index(each.state))
    return replace(
        nearest,
        in_use=one.in_use + other.in_use,
        bytes=max(one.bytes, other.bytes),
        pinned=one.pinned or other.pinned,
    )
