"""Which adapter has which slot: pure bookkeeping, no tensors, no threads.

An adapter in use keeps its slot, and so does a pinned one; of the others the least recently used
makes room. Every basis seed in the table keeps a pair of matrices in memory, so seeds are limited
as well: a new one may push out all adapters of an idle one.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapters_store.manifest import AdapterRef
from server.adapters.facts import AdapterFacts
from server.errors import Conflict, Unavailable


@dataclass
class Occupant:
    """An adapter in a slot. `forgotten`: it leaves when its last use ends."""

    facts: AdapterFacts
    slot: int
    uses: int = 0
    forgotten: bool = False


class SlotTable:
    """Slots 1 to `size`; at most `max_seeds` different seeds among their adapters."""

    def __init__(self, size: int, max_seeds: int) -> None:
        self.size = size
        self.max_seeds = max_seeds
        self.evictions = 0
        self.pins: set[AdapterRef] = set()
        self._free = list(range(size, 0, -1))  # the lowest is handed out first
        self._occupants: OrderedDict[AdapterRef, Occupant] = OrderedDict()  # least recent first
        self._facts: dict[int, AdapterFacts] = {}
        self.facts: Mapping[int, AdapterFacts] = MappingProxyType(self._facts)  # by slot

    def __iter__(self) -> Iterator[Occupant]:
        return iter(self._occupants.values())

    @property
    def seeds(self) -> set[int]:
        """The seeds whose matrices must stay."""
        return {occupant.facts.seed for occupant in self}

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
        """Give an adapter that has none a slot and count one use; None while all are in use.

        Raises:
            Unavailable: pinned adapters hold every seed that fits, so that waiting cannot help.
        """
        if facts.seed not in self.seeds and not self._make_room_for_seed(facts):
            return None
        if not self._free:
            idle = next((occupant for occupant in self if self._evictable(occupant)), None)
            if idle is None:
                return None
            self._evict(idle)
        occupant = Occupant(facts, self._free.pop(), uses=1)
        self._occupants[facts.ref] = occupant
        self._facts[occupant.slot] = facts
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
        """Free its slot: now, or when its last use ends."""
        self.pins.discard(ref)
        occupant = self._occupants.get(ref)
        if occupant is None:
            return
        occupant.forgotten = True
        if occupant.uses == 0:
            self.vacate(occupant)

    def vacate(self, occupant: Occupant) -> None:
        """Free a slot at once, whatever its uses: for one that was never filled."""
        del self._occupants[occupant.facts.ref]
        del self._facts[occupant.slot]
        self._free.append(occupant.slot)

    def _make_room_for_seed(self, facts: AdapterFacts) -> bool:
        seeds = self.seeds
        if len(seeds) < self.max_seeds:
            return True
        pinned = {occupant.facts.seed for occupant in self if occupant.facts.ref in self.pins}
        if pinned == seeds:
            raise Unavailable(
                f"adapter {facts.ref} needs a basis of its own, but pinned adapters hold all "
                f"{self.max_seeds} that fit: unpin one, or raise adapter_memory_mb"
            )
        busy = {occupant.facts.seed for occupant in self if not self._evictable(occupant)}
        latest_use = {occupant.facts.seed: age for age, occupant in enumerate(self)}
        idle = min(seeds - busy, key=latest_use.__getitem__, default=None)
        if idle is None:
            return False
        for occupant in [occupant for occupant in self if occupant.facts.seed == idle]:
            self._evict(occupant)
        return True

    def _evictable(self, occupant: Occupant) -> bool:
        return occupant.uses == 0 and occupant.facts.ref not in self.pins

    def _evict(self, occupant: Occupant) -> None:
        self.evictions += 1
        self.vacate(occupant)
