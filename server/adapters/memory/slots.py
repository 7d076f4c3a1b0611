"""Keeps account of which adapter has which slot and pages. Knows no tensors and no threads.

An adapter in use keeps its slot, and so does a pinned one; of the others the least recently used
leaves for a new one. Every basis that a resident adapter reads is in memory, so bases are limited
in bytes as well: for a new basis, all adapters of an idle one may have to leave.
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
class Resident:
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
        self._residents: OrderedDict[AdapterRef, Resident] = OrderedDict()  # least recent first
        self._by_slot: dict[int, Resident] = {}
        self.by_slot: Mapping[int, Resident] = MappingProxyType(self._by_slot)
        self._needs: dict[BasisId, Counter[BasisNeed]] = {}  # what residents read of each basis

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._residents.values())

    @property
    def bases(self) -> set[BasisId]:
        """The bases whose matrices must stay."""
        return set(self._needs)

    def find(self, ref: AdapterRef) -> Resident | None:
        return self._residents.get(ref)

    def use(self, ref: AdapterRef) -> Resident | None:
        """Count one more use of a resident adapter; None if it is not resident."""
        resident = self._residents.get(ref)
        if resident is not None:
            resident.uses += 1
            self._residents.move_to_end(ref)
        return resident

    def take(self, facts: AdapterFacts) -> Resident | None:
        """Give an adapter that has none a place and count one use; None while it must wait.

        Raises:
            Unavailable: it does not fit even if all others leave, so that waiting cannot help.
        """
        if not self._memory_for_basis(facts):
            return None
        page = self._pages_for_row(facts)
        if page is None:
            return None
        resident = Resident(facts, self._free.pop(), page, uses=1)
        self._residents[facts.ref] = resident
        self._by_slot[resident.slot] = resident
        self._needs.setdefault(facts.basis, Counter())[facts.need] += 1
        return resident

    def release(self, ref: AdapterRef) -> None:
        """End one use."""
        resident = self._residents.get(ref)
        if resident is None or resident.uses == 0:
            raise ValueError(
                f"adapter {ref} of {ref.owner!r} is released more often than it was acquired"
            )
        resident.uses -= 1
        self._residents.move_to_end(ref)
        if resident.forgotten and resident.uses == 0:
            self.vacate(resident)

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
        resident = self._residents.get(ref)
        if resident is None:
            return
        resident.forgotten = True
        if resident.uses == 0:
            self.vacate(resident)

    def vacate(self, resident: Resident) -> None:
        """Free a place at once, even if it is in use: its adapter was never copied there."""
        facts = resident.facts
        del self._residents[facts.ref]
        del self._by_slot[resident.slot]
        self._free.append(resident.slot)
        self._pages.give(resident.page, facts.layout.pages)
        needs = self._needs[facts.basis]
        needs[facts.need] -= 1
        if not needs[facts.need]:
            del needs[facts.need]
        if not needs:
            del self._needs[facts.basis]

    def _pages_for_row(self, facts: AdapterFacts) -> int | None:
        """A slot is free afterwards, and these pages are taken; None: all that could go is in use.

        Raises:
            Unavailable: pinned adapters leave no room, or the row is longer than the memory.
        """
        count = facts.layout.pages
        if count > self._pages.total - sum(o.facts.layout.pages for o in self._pinned()):
            raise Unavailable(
                f"adapter {facts.ref} takes {facts.layout.row_bytes / _MIB:.1f} MiB of memory for "
                "adapters, more than pinned adapters leave: raise adapter_memory_mb"
            )
        page = self._take_pages(count)
        while page is None:
            leaving = self._next_to_leave(count)
            if not leaving:
                return None
            for resident in leaving:
                self._evict(resident)
                page = self._take_pages(count)
                if page is not None:
                    break
        return page

    def _next_to_leave(self, count: int) -> list[Resident]:
        """Those used longest ago that leave so many pages free, though not always in one piece.

        At least one; none if all that could go is too little. Of thousands it looks at a few.
        """
        free, leaving = self._pages.free, list[Resident]()
        for resident in self:
            if self._evictable(resident):
                leaving.append(resident)
                free += resident.facts.layout.pages
                if free >= count:
                    return leaving
        return []

    def _take_pages(self, count: int) -> int | None:
        return self._pages.take(count) if self._free else None

    def _memory_for_basis(self, facts: AdapterFacts) -> bool:
        """Whether the basis fits now; adapters of idle bases have left for it if need be.

        Raises:
            Unavailable: it does not fit together with those of pinned adapters.
        """
        basis, needs = facts.basis, self._needs.get(facts.basis, Counter())
        if any(need.covers(facts.need, per_layer=basis.per_layer) for need in needs):
            return True
        own_bytes = self._bytes_of(basis, joined([facts.need, *needs]))
        sizes = {b: self._bytes_of(b, joined(self._needs[b])) for b in self._needs if b != basis}
        pinned = {resident.facts.basis for resident in self._pinned()}
        if own_bytes + sum(sizes[b] for b in pinned & sizes.keys()) > self._basis_bytes:
            raise Unavailable(
                f"adapter {facts.ref} reads random matrices of {own_bytes / _MIB:.1f} MiB, more "
                f"than is left of {self._basis_bytes / _MIB:.0f} MiB: raise basis_memory_mb, or "
                "unpin an adapter"
            )
        if own_bytes + sum(sizes.values()) <= self._basis_bytes:
            return True
        busy = {o.facts.basis for o in self if not self._evictable(o)}
        latest_use = {o.facts.basis: age for age, o in enumerate(self)}
        idle = sorted(sizes.keys() - busy, key=latest_use.__getitem__)
        while own_bytes + sum(sizes.values()) > self._basis_bytes:
            if not idle:
                return False
            idle_basis = idle.pop(0)
            del sizes[idle_basis]
            for resident in [o for o in self if o.facts.basis == idle_basis]:
                self._evict(resident)
        return True

    def _pinned(self) -> list[Resident]:
        return [self._residents[ref] for ref in self.pins if ref in self._residents]

    def _evictable(self, resident: Resident) -> bool:
        return resident.uses == 0 and resident.facts.ref not in self.pins

    def _evict(self, resident: Resident) -> None:
        self.evictions += 1
        self.vacate(resident)
