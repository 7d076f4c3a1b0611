"""Brings adapters from the store to a slot in device memory, while requests run.

One thread, the engine's, acquires, releases and builds batches. No other thread touches device
memory, and the engine's never waits for a disk. Any thread may prepare, pin, forget and look.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.adapters.adapter_status import AdapterStatus, status_of_resident, statuses
from server.adapters.batch.fused_plan import FusedGroup
from server.adapters.batch.linears import install
from server.adapters.batch.mixed_batch import MixedBatch
from server.adapters.batch.step_adapters import StepAdapters
from server.adapters.loading.checks import AdapterChecks
from server.adapters.loading.loader import AdapterLoader
from server.adapters.memory.banks import Bank
from server.adapters.memory.dense_updates import DenseUpdates
from server.adapters.memory.host_cache import HostCache, LoadedAdapter
from server.adapters.memory.layouts import PAGE, Layouts, RowLayout
from server.adapters.memory.matrices import BasisSource, HostBases, LoadedBasis
from server.adapters.memory.pages import FreePages
from server.adapters.memory.slots import Resident, SlotTable
from server.adapters.methods.method import Method
from server.adapters.methods.registry import method_named, methods_by_name
from server.bases.model import BaseModel

_MIB = 2**20


class ResidentAdapters:
    """The adapters of one base in one device's memory.

    Attributes:
        steps: makes the batch or the plan of each step; for the engine's thread alone.

    Args:
        max_rank: the largest rank served.
        slots: adapters resident at most; fewer if `memory_mb` MiB do not hold as many.
        basis_mb: MiB of device memory for random matrices, and as many of host memory; taken as
            they are needed.
        host_cache_mb: MiB of host memory for adapters that have no slot.
        dense_mb: MiB of device memory for dense updates of the busiest adapters; taken as they are
            needed, 0 for none.

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
        basis_mb: int,
        host_cache_mb: int,
        dense_mb: int = 0,
        loader_threads: int = 2,
    ) -> None:
        self._base = base
        source = BasisSource(base, store.imported_bases)
        layouts = Layouts(base, max_rank)
        zeros = _longest_shared(layouts)
        pages = _pages_within(base, memory_mb, zeros, max_rank)
        free = FreePages(zeros.pages, pages)
        fit = pages // zeros.pages
        self._table = SlotTable(min(slots, fit), free, basis_mb * _MIB, source.bytes_of)
        self._lock = threading.Lock()  # over the table; never loaded over a copy
        self._bank = Bank(zeros, pages, base.dtype, base.device)
        self._dense = DenseUpdates(base, self._bank, dense_mb * _MIB)
        self.steps = StepAdapters(base, self._table.by_slot, self._bank, source, self._dense)
        self._layouts = layouts
        self._cache = HostCache(host_cache_mb * _MIB)
        self._loader = AdapterLoader(
            base,
            store,
            layouts,
            AdapterChecks(base, source, max_rank),
            self._cache,
            HostBases(source, basis_mb * _MIB, pinned=base.device.type == "cuda"),
            loader_threads,
        )
        self._current = install(base)
        self.loads = 0
        self.hits = 0

    @property
    def slots(self) -> int:
        """Slots for adapters; the base's is not among them."""
        return self._table.size

    @property
    def evictions(self) -> int:
        """Adapters that left their slot for another."""
        return self._table.evictions

    @property
    def dense_bytes(self) -> int:
        """Device memory of dense updates, unfinished ones as large as they will be."""
        return self._dense.bytes

    @property
    def vector_bytes(self) -> int:
        """Device memory for adapters' vectors, whether they are there or not."""
        return self._bank.memory.nbytes

    @property
    def matrix_bytes(self) -> int:
        """Device memory of random matrices and of what is made of them; any thread may ask."""
        return self.steps.bases.bytes + self.dense_bytes

    @property
    def on_loaded(self) -> Callable[[], None] | None:
        """Called from a loader thread whenever a load ended, also when it failed."""
        return self._loader.on_loaded

    @on_loaded.setter
    def on_loaded(self, callback: Callable[[], None] | None) -> None:
        self._loader.on_loaded = callback

    def prepare(self, ref: AdapterRef) -> None:
        """Start to load it, unless it is in memory or loading; try again if it failed before."""
        with self._lock:
            if self._table.find(ref) is None:
                self._loader.prepare(ref)

    def acquire(self, ref: AdapterRef) -> int | None:
        """Its slot, reserved until `release`; None while it is loading or all slots are in use.

        Raises:
            InvalidAdapter: it cannot be served on this base.
            StoreError: it is not in the store, or damaged.
            Unavailable: it could not be read, or pinned adapters leave it no room.
        """
        with self._lock:
            resident = self._table.use(ref)
            if resident is not None:
                self.hits += 1
                return resident.slot
            fetched = self._loader.fetch(ref)
            resident = self._table.take(fetched[0].facts) if fetched is not None else None
        if fetched is None or resident is None:
            return None
        self._move_in(resident, *fetched)
        return resident.slot

    def content(self, ref: AdapterRef) -> str:
        """The content hash of an acquired adapter. Equal hashes give equal keys and values."""
        with self._lock:
            resident = self._table.find(ref)
        if resident is None:
            raise ValueError(f"adapter {ref} of {ref.owner!r} is not acquired")
        return resident.facts.sha256

    def is_loaded(self, ref: AdapterRef) -> bool:
        """Whether it is in memory, so that `acquire` needs nothing but a free slot."""
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
        """Drop a deleted adapter, once the answers that use it have ended."""
        with self._lock:
            self._table.forget(ref)
            self._loader.forget(ref)

    def expected_group(self, method: Method, loaded: LoadedBasis, seed: int) -> FusedGroup:
        """The group that adapters of a whole-batch method on every target will form."""
        layout = self._layouts.of(method, 1, ())
        rank = min(loaded.need.size.b_rank, layout.padded_rank)
        basis, targets = method.basis(seed), frozenset(self._base.targets)
        return FusedGroup(method.kernels, layout, basis, loaded, rank, targets)

    def use(self, batch: MixedBatch) -> AbstractContextManager[None]:
        """While this is entered, the base model's forward is that of `batch`."""
        return self._current.set_to(batch.deltas)

    def snapshot(self) -> list[AdapterStatus]:
        """Every adapter in memory: those in slots, then in host memory, then those being loaded."""
        with self._lock:
            pins = set(self._table.pins)
            residents = [status_of_resident(resident, pins) for resident in self._table]
        return statuses(residents, self._cache.facts(), self._loader.loading(), pins)

    def close(self) -> None:
        """Stop the loader threads. Running loads end first."""
        self._loader.close()

    def _move_in(self, resident: Resident, loaded: LoadedAdapter, bases: LoadedBasis) -> None:
        """Copy vectors and, for a new basis or a larger rank, matrices to the device."""
        self.steps.forget()
        try:
            with self._lock:
                bases_in_use = self._table.bases
            self.steps.bases.admit(loaded.facts, bases, bases_in_use)
            self._bank.write(resident.page, loaded.row)
        except BaseException:
            with self._lock:
                self._table.vacate(resident)
            raise
        self.loads += 1


def _longest_shared(layouts: Layouts) -> RowLayout:
    """The longest row that the base's tokens are to read as zeros."""
    methods = [method_named(name) for name in methods_by_name()]
    shared = [layouts.of(method, 1, ()) for method in methods if method.whole_batch]
    return max(shared, key=lambda layout: layout.width)


def _pages_within(base: BaseModel, memory_mb: int, zeros: RowLayout, max_rank: int) -> int:
    """Pages for adapters in `memory_mb`, beside the zeros."""
    pages = memory_mb * _MIB // (PAGE * base.dtype.itemsize) - zeros.pages
    if pages < zeros.pages:
        least = -(-2 * zeros.pages * PAGE * base.dtype.itemsize // _MIB)
        raise ValueError(
            f"adapter_memory_mb={memory_mb} holds no adapter of base {base.name!r} at "
            f"max_rank={max_rank}: give at least {least}, or lower max_rank"
        )
    return pages
