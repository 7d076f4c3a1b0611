"""Tells users which adapters are in memory, and where."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from adapters_store.manifest import AdapterRef

if TYPE_CHECKING:  # the API imports this module, and torch takes seconds
    from server.adapters.memory.adapter_facts import AdapterFacts
    from server.adapters.memory.slots import Resident


class AdapterState(StrEnum):
    """Where an adapter is: in a slot, in host memory, or being loaded from the store."""

    RESIDENT = "resident"
    HOST = "host"
    LOADING = "loading"


@dataclass(frozen=True)
class AdapterStatus:
    """One adapter in memory. `bytes` are those of its vectors; 0 and no hash while loading."""

    ref: AdapterRef
    state: AdapterState
    slot: int | None = None
    bytes: int = 0
    in_use: int = 0
    pinned: bool = False
    sha256: str = ""


def status_of_resident(resident: "Resident", pins: Collection[AdapterRef]) -> AdapterStatus:
    """The status of an adapter in a slot."""
    status = _status(resident.facts, AdapterState.RESIDENT, pins)
    return replace(status, slot=resident.slot, in_use=resident.uses)


def statuses(
    residents: Iterable[AdapterStatus],
    in_host: Iterable["AdapterFacts"],
    loading: Iterable[AdapterRef],
    pins: Collection[AdapterRef],
) -> list[AdapterStatus]:
    """Each adapter once, where it is nearest to the device: in a slot, in host memory, loading."""
    by_ref = {status.ref: status for status in residents}
    for facts in in_host:
        by_ref.setdefault(facts.ref, _status(facts, AdapterState.HOST, pins))
    for ref in loading:
        by_ref.setdefault(ref, AdapterStatus(ref, AdapterState.LOADING, pinned=ref in pins))
    return list(by_ref.values())


def _status(
    facts: "AdapterFacts", state: AdapterState, pins: Collection[AdapterRef]
) -> AdapterStatus:
    pinned = facts.ref in pins
    return AdapterStatus(facts.ref, state, bytes=facts.bytes, pinned=pinned, sha256=facts.sha256)
