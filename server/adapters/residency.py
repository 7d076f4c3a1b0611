"""Adapters from the store to a slot in device memory, while requests run.

One thread, the engine's, acquires, releases and builds batches, and is the only one to touch device
memory; it never waits for a disk. Any thread may prepare, pin, forget and look.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.adapters.banks import Bank, RowLayout
from server.adapters.basis_pairs import HostPairs, joined, on_device, pair_bytes
from server.adapters.batch import MixedBatch, mixed_batch
from server.adapters.checks import AdapterChecks
from server.adapters.facts import AdapterFacts
from server.adapters.host_cache import HostCache, LoadedAdapter
from server.adapters.linears import install
from server.adapters.loader import AdapterLoader
from server.adapters.method import BasisPair
from server.adapters.methods import METHODS
from server.adapters.slots import Occupant, SlotTable
from server.bases.model import BaseModel

_MIB = 2**20
_MAX_SEEDS = 64
_SEEDS_SHARE = 8  # an eighth of the memory may go to the matrices of seeds
_KEEP_BYTES = 64 * _MIB  # vectors gathered for one batch, held while its slots stay the same


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


class ResidentAdapters:
    """The adapters of one base in one device's memory.

    Args:
        max_rank: the largest rank served.
        slots: adapters resident at most; fewer if `memory_mb` MiB do not hold as many.
        host_cache_mb: MiB of host memory for adapters that have no slot.

    Raises:
        ValueError: `memory_mb` does not hold a single adapter.
    """

    def __init__(
        self,
        base: BaseModel,
        store: AdapterStore,
        *,
        max_rank: int,
        slots: int,
        memory_mb: int,
        host_cache_mb: int,
        loader_threads: int = 2,
    ) -> None:
        self._base = base
        layouts = {
            name: RowLayout(method, base.targets, max_rank, base.dtype)
            for name, method in METHODS.items()
        }
        fit, seeds = _spend(base, layouts, max_rank, memory_mb)
        self._table = SlotTable(min(slots, fit), seeds)
        self._lock = threading.Lock()  # over the table; never held over a copy
        self._bank = Bank(layouts, self._table.size, base.dtype, base.device)
        self._pairs: dict[int, BasisPair] = {}  # by seed, on the device; the engine's thread alone
        self._cache = HostCache(host_cache_mb * _MIB)
        self._loader = AdapterLoader(
            base,
            store,
            layouts,
            AdapterChecks(base, max_rank),
            self._cache,
            HostPairs(base, 2 * seeds),
            loader_threads,
        )
        self._current = install(base)
        self._batch: MixedBatch | None = None
        self.loads = 0
        self.hits = 0

    @property
    def slots(self) -> int:
        """Slots for adapters; the base's is not among them."""
        return self._table.size

    @property
    def evictions(self) -> int:
        """Adapters that made room for another."""
        return self._table.evictions

    @property
    def on_loaded(self) -> Callable[[], None] | None:
        """Called from a loader thread whenever a load ended, well or not."""
        return self._loader.on_loaded

    @on_loaded.setter
    def on_loaded(self, callback: Callable[[], None] | None) -> None:
        self._loader.on_loaded = callback

    def prepare(self, ref: AdapterRef) -> None:
        """Start to load it unless it is here or on its way; try again if it failed before."""
        with self._lock:
            if self._table.find(ref) is None:
                self._loader.prepare(ref)

    def acquire(self, ref: AdapterRef) -> int | None:
        """Its slot, held until `release`; None while it is loading or all slots are in use.

        Raises:
            InvalidAdapter: it cannot be served on this base.
            StoreError: it is not in the store, or damaged.
            Unavailable: it could not be read, or pinned adapters leave it no room.
        """
        with self._lock:
            occupant = self._table.use(ref)
            if occupant is not None:
                self.hits += 1
                return occupant.slot
            found = self._loader.fetch(ref)
            occupant = self._table.take(found[0].facts) if found is not None else None
        if found is None or occupant is None:
            return None
        self._move_in(occupant, *found)
        return occupant.slot

    def is_loaded(self, ref: AdapterRef) -> bool:
        """Whether `acquire` would give it a slot at once, were one free."""
        with self._lock:
            return self._table.find(ref) is not None or self._loader.is_ready(ref)

    def release(self, ref: AdapterRef) -> None:
        """End what one `acquire` began. The adapter stays until its slot is wanted."""
        with self._lock:
            self._table.release(ref)

    def pin(self, ref: AdapterRef) -> None:
        """Start to load it; from its first use on it keeps its slot.

        Raises:
            Conflict: no slot would be left for the others.
        """
        with self._lock:
            self._table.pin(ref)
        self.prepare(ref)

    def unpin(self, ref: AdapterRef) -> None:
        """Let it be evicted again."""
        with self._lock:
            self._table.unpin(ref)

    def forget(self, ref: AdapterRef) -> None:
        """Drop a deleted adapter; answers that are being written with it end first."""
        with self._lock:
            self._table.forget(ref)
            self._loader.forget(ref)

    def batch(self, slots: Sequence[int]) -> MixedBatch:
        """The mixed batch of one step: the slot of each token, all acquired, or 0 for the base.

        The last batch is given again when the slots are the same and nothing was loaded since.
        """
        if self._batch is None or self._batch.slots != tuple(slots):
            self._batch = mixed_batch(
                slots,
                self._table.facts,
                self._base.targets,
                self._bank,
                self._pairs,
                device=self._base.device,
                keep=len(slots) * self._bank.row_bytes <= _KEEP_BYTES,
            )
        return self._batch

    def use(self, batch: MixedBatch) -> AbstractContextManager[None]:
        """While this is entered, the base model's forward is that of `batch`."""
        return self._current.set_to(batch.deltas)

    def snapshot(self) -> list[Resident]:
        """Every adapter in memory: residents, then host memory, then those on their way."""
        with self._lock:
            pins = set(self._table.pins)
            seen = {o.facts.ref: _resident(o, o.facts.ref in pins) for o in self._table}
        for facts in self._cache.facts():
            seen.setdefault(facts.ref, _waiting(facts, facts.ref in pins))
        for ref in self._loader.loading():
            seen.setdefault(ref, Resident(ref, Residence.LOADING, pinned=ref in pins))
        return list(seen.values())

    def close(self) -> None:
        """Stop the loader threads; loads under way end first."""
        self._loader.close()

    def _move_in(self, occupant: Occupant, loaded: LoadedAdapter, pair: BasisPair) -> None:
        """Copy vectors and, for a new seed or a larger rank, matrices to the device."""
        self._batch = None
        try:
            self._admit(loaded.facts.seed, pair)
            self._bank.write(occupant.slot, loaded.row)
        except BaseException:
            with self._lock:
                self._table.vacate(occupant)
            raise
        self.loads += 1

    def _admit(self, seed: int, pair: BasisPair) -> None:
        with self._lock:
            seeds = self._table.seeds
        self._pairs = {held: self._pairs[held] for held in seeds if held in self._pairs}
        held = self._pairs.get(seed)
        if held is None or len(held.a) < len(pair.a) or len(held.bt) < len(pair.bt):
            self._pairs[seed] = on_device(pair, self._base.device)


def _resident(occupant: Occupant, pinned: bool) -> Resident:
    facts = occupant.facts
    return Resident(
        facts.ref,
        Residence.RESIDENT,
        slot=occupant.slot,
        bytes=facts.bytes,
        in_use=occupant.uses,
        pinned=pinned,
        sha256=facts.sha256,
    )


def _waiting(facts: AdapterFacts, pinned: bool) -> Resident:
    return Resident(
        facts.ref, Residence.HOST, bytes=facts.bytes, pinned=pinned, sha256=facts.sha256
    )


def _spend(
    base: BaseModel, layouts: Mapping[str, RowLayout], max_rank: int, memory_mb: int
) -> tuple[int, int]:
    """How many adapters, and how many seeds' matrices, the memory holds at worst."""
    row = max(layout.row_bytes for layout in layouts.values())
    pair = pair_bytes(base, joined(method.basis_size(max_rank) for method in METHODS.values()))
    seeds = min(max(memory_mb * _MIB // _SEEDS_SHARE // pair, 1), _MAX_SEEDS)
    fit = (memory_mb * _MIB - seeds * pair) // row - 1  # the base's slot takes one row
    if fit < 1:
        raise ValueError(
            f"adapter_memory_mb={memory_mb} holds no adapter of base {base.name!r} at "
            f"max_rank={max_rank}: give at least {-(-(pair + 2 * row) // _MIB)}, or lower max_rank"
        )
    return fit, seeds
