"""Which adapter has which slot and pages: pure bookkeeping, no tensors, no threads.

An adapter in use keeps its place, and so does a pinned one; of the others the least recently used
makes room. Every basis that an adapter here reads is in memory, so those are limited in bytes as
well: a new one may push out all adapters of an idle one.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapters_store.manifest import AdapterRef
from server.adapters.memory.adapter_facts import AdapterFacts
from server.adapters.memory.matrices import BasisNeed, joined
from server.adapters.memory.pages import FreePages
from server.adapters.methods.basis_id import BasisId
from server.errors import Conflict, Unavailable

_MIB = 2**20

BytesOf = Callable[[BasisId, BasisNeed], int]


@dataclass
class Occupant:
    """An adapter in a slot, its row from `page` on. `forgotten`: it leaves after its last use."""

    facts: AdapterFacts
    slot: int
    page: int
    uses: int = 0
    forgotten: bool = False

    @property
    def pages(self) -> range:
        """Where its row lies."""
        return range(self.page, self.page + self.facts.layout.pages)


class SlotTable:
    """Slots 1 to `size`, their rows in `pages`, their bases in `basis_bytes`."""

    def __init__(self, size: int, pages: FreePages, basis_bytes: int, bytes_of: BytesOf) -> None:
        self.size = size
        self.evictions = 0
        self.pins: set[AdapterRef] = set()
        self._pages = pages
        self._basis_bytes = basis_bytes
        self._bytes_of = bytes_of
        self._free = list(range(size, 0, -1))  # the lowest is handed out first
        self._occupants: OrderedDict[AdapterRef, Occupant] = OrderedDict()  # least recent first
        self._by_slot: dict[int, Occupant] = {}
        self.by_slot: Mapping[int, Occupant] = MappingProxyType(self._by_slot)
        self._needs: dict[BasisId, Counter[BasisNeed]] = {}  # what occupants read of each basis

    def __iter__(self) -> Iterator[Occupant]:
        return iter(self._occupants.values())

    @property
    def bases(self) -> set[BasisId]:
        """The bases whose matrices must stay."""
        return set(self._needs)

    def find(self, ref: AdapterRef) -> Occupant | None:
        return self._occupants.get(ref)

    def use(self, ref: AdapterRef) -> Occupant | None:
        """Count one more use of a resident adapter; None if it is not resident."""
        occupant = self._occupants.get(ref)
        if occupant is not None:
            occupant.uses += 1
            self._occupants.move_to_end(ref)
        return occupant

    def take(self, facts: AdapterFacts) -> Occupant | None:
        """Give an adapter that has none a place and count one use; None while it must wait.

        Raises:
            Unavailable: it does not fit whatever else leaves, so that waiting cannot help.
        """
        if not self._make_room_for_basis(facts):
            return None
        page = self._make_room_for_row(facts)
        if page is None:
            return None
        occupant = Occupant(facts, self._free.pop(), page, uses=1)
        self._occupants[facts.ref] = occupant
        self._by_slot[occupant.slot] = occupant
        self._needs.setdefault(facts.basis, Counter())[facts.need] += 1
        return occupant

    def release(self, ref: AdapterRef) -> None:
        """End one use."""
        occupant = self._occupants.get(ref)
        if occupant is None or occupant.uses == 0:
            raise ValueError(f"adapter {ref} of {ref.owner!r} is released more often than acquired")
        occupant.uses -= 1
        self._occupants.move_to_end(ref)
        if occupant.forgotten and occupant.uses == 0:
            self.vacate(occupant)

    def pin(self, ref: AdapterRef) -> None:
        """Never evict it once it is resident.

        Raises:
            Conflict: no slot would be left for the others.
        """
        if ref not in self.pins and len(self.pins) + 1 >= self.size:
            raise Conflict(
                f"pinning {ref} would leave no slot for other adapters: {len(self.pins)} of "
                f"{self.size} are pinned; unpin one, or raise adapter_slots or adapter_memory_mb"
            )
        self.pins.add(ref)

    def unpin(self, ref: AdapterRef) -> None:
        self.pins.discard(ref)

    def forget(self, ref: AdapterRef) -> None:
        """Free its place: now, or when its last use ends."""
        self.pins.discard(ref)
        occupant = self._occupants.get(ref)
        if occupant is None:
            return
        occupant.forgotten = True
        if occupant.uses == 0:
            self.vacate(occupant)

    def vacate(self, occupant: Occupant) -> None:
        """Free a place at once, whatever its uses: for one that was never filled."""
        facts = occupant.facts
        del self._occupants[facts.ref]
        del self._by_slot[occupant.slot]
        self._free.append(occupant.slot)
        self._pages.give(occupant.page, facts.layout.pages)
        needs = self._needs[facts.basis]
        needs[facts.need] -= 1
        if not needs[facts.need]:
            del needs[facts.need]
        if not needs:
            del self._needs[facts.basis]

    def _make_room_for_row(self, facts: AdapterFacts) -> int | None:
        """A slot is free afterwards, and these pages are taken; None: all that could go is in use.

        Raises:
            Unavailable: pinned adapters leave no room, or the row is longer than the memory.
        """
        wanted = facts.layout.pages
        if wanted > self._pages.total - sum(o.facts.layout.pages for o in self._pinned()):
            raise Unavailable(
                f"adapter {facts.ref} takes {facts.layout.row_bytes / _MIB:.1f} MiB of memory for "
                "adapters, more than pinned adapters leave: raise adapter_memory_mb"
            )
        page = self._take_pages(wanted)
        while page is None:
            leaving = self._next_to_leave(wanted)
            if not leaving:
                return None
            for occupant in leaving:
                self._evict(occupant)
                page = self._take_pages(wanted)
                if page is not None:
                    break
        return page

    def _next_to_leave(self, wanted: int) -> list[Occupant]:
        """Those used longest ago that leave so many pages free, though not always in one piece.

        At least one; none if all that could go is too little. Of thousands it looks at a few.
        """
        room, leaving = self._pages.free, list[Occupant]()
        for occupant in self:
            if self._evictable(occupant):
                leaving.append(occupant)
                room += occupant.facts.layout.pages
                if room >= wanted:
                    return leaving
        return []

    def _take_pages(self, count: int) -> int | None:
        return self._pages.take(count) if self._free else None

    def _make_room_for_basis(self, facts: AdapterFacts) -> bool:
        """Whether the basis fits now; adapters of idle bases have left for it if need be.

        Raises:
            Unavailable: it does not fit beside those of pinned adapters.
        """
        basis, needs = facts.basis, self._needs.get(facts.basis, Counter())
        if any(need.covers(facts.need, per_layer=basis.per_layer) for need in needs):
            return True
        wanted = self._bytes_of(basis, joined([facts.need, *needs]))
        held = {b: self._bytes_of(b, joined(self._needs[b])) for b in self._needs if b != basis}
        pinned = {occupant.facts.basis for occupant in self._pinned()}
        if wanted + sum(held[b] for b in pinned & held.keys()) > self._basis_bytes:
            raise Unavailable(
                f"adapter {facts.ref} reads random matrices of {wanted / _MIB:.1f} MiB, more than "
                f"is left of {self._basis_bytes / _MIB:.0f}: raise basis_memory_mb, or unpin one"
            )
        if wanted + sum(held.values()) <= self._basis_bytes:
            return True
        busy = {o.facts.basis for o in self if not self._evictable(o)}
        latest_use = {o.facts.basis: age for age, o in enumerate(self)}
        idle = sorted(held.keys() - busy, key=latest_use.__getitem__)
        while wanted + sum(held.values()) > self._basis_bytes:
            if not idle:
                return False
            gone = idle.pop(0)
            del held[gone]
            for occupant in [o for o in self if o.facts.basis == gone]:
                self._evict(occupant)
        return True

    def _pinned(self) -> list[Occupant]:
        return [self._occupants[ref] for ref in self.pins if ref in self._occupants]

    def _evictable(self, occupant: Occupant) -> bool:
        return occupant.uses == 0 and occupant.facts.ref not in self.pins

    def _evict(self, occupant: Occupant) -> None:
        self.evictions += 1
        self.vacate(occupant)
