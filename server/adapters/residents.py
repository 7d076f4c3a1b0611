"""The adapters in memory as people are shown them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from adapters_store.manifest import AdapterRef
from server.adapters.memory.adapter_facts import AdapterFacts
from server.adapters.memory.slots import Occupant


class Residence(StrEnum):
    """Where an adapter is: in a slot, in host memory, or on its way from the store."""

    RESIDENT = "resident"
    HOST = "host"
    LOADING = "loading"


@dataclass(frozen=True)
class Resident:
    """One adapter in memory. `bytes` are those of its vectors; 0 and no hash while loading."""

    ref: AdapterRef
    state: Residence
    slot: int | None = None
    bytes: int = 0
    in_use: int = 0
    pinned: bool = False
    sha256: str = ""


def resident(occupant: Occupant, pins: Collection[AdapterRef]) -> Resident:
    """One in a slot."""
    facts = occupant.facts
    return Resident(
        facts.ref,
        Residence.RESIDENT,
        slot=occupant.slot,
        bytes=facts.bytes,
        in_use=occupant.uses,
        pinned=facts.ref in pins,
        sha256=facts.sha256,
    )


def everybody(
    residents: Iterable[Resident],
    waiting: Iterable[AdapterFacts],
    loading: Iterable[AdapterRef],
    pins: Collection[AdapterRef],
) -> list[Resident]:
    """Each adapter once, where it is nearest: in a slot, in host memory, on its way."""
    seen = {each.ref: each for each in residents}
    for facts in waiting:
        held = Resident(
            facts.ref,
            Residence.HOST,
            bytes=facts.bytes,
            pinned=facts.ref in pins,
            sha256=facts.sha256,
        )
        seen.setdefault(facts.ref, held)
    for ref in loading:
        seen.setdefault(ref, Resident(ref, Residence.LOADING, pinned=ref in pins))
    return list(seen.values())
