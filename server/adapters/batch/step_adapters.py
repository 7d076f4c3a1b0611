"""What a step reads of the adapters in device memory: its batch, or its plan for the fused decoder.

Knows no store and no loading. Only the engine's thread uses this.
"""

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from server.adapters.batch.fused_plan import FusedPlan, fused_plan
from server.adapters.batch.group_cache import GroupCache
from server.adapters.batch.group_inputs import GroupInputs
from server.adapters.batch.mixed_batch import MixedBatch, mixed_batch
from server.adapters.memory.banks import Bank
from server.adapters.memory.dense_updates import DenseUpdates
from server.adapters.memory.device_bases import DeviceBases
from server.adapters.memory.matrices import BasisSource, LoadedBasis
from server.adapters.memory.slots import Resident
from server.bases.model import BaseModel

if TYPE_CHECKING:
    from server.adapters.batch.fused_batch import FusedAdapters, Gate
    from server.adapters.batch.kernel_offsets import KernelOffsets

_KEEP_BYTES: Final = 64 * 2**20  # gathered vectors of one batch, kept while its slots are the same


class StepAdapters:
    """Batches and plans, the last of each kept; see `server.adapters.residency`.

    Nothing that is kept here outlives the matrices that it reads: `register` a cache for the same.
    """

    def __init__(
        self,
        base: BaseModel,
        residents: Mapping[int, Resident],
        bank: Bank,
        source: BasisSource,
        dense: DenseUpdates,
    ) -> None:
        self.bases = DeviceBases(source, base.device, self._drop)
        self._base = base
        self._residents = residents
        self._bank = bank
        self._dense = dense
        self._caches: WeakSet[GroupCache[Any]] = WeakSet()
        self._offsets: KernelOffsets | None = None
        self._batch: MixedBatch | None = None
        # Of decodes and of the rest of a step, by whether it is replayed.
        self._plans: dict[bool, tuple[list[int], FusedPlan]] = {}
        self._slots: list[int] | None = None  # of the last step, unless an adapter came since
        self._rows: list[range] = []

    def forget(self) -> None:
        """Drop what was kept, since an adapter or a basis is about to change."""
        self._batch = self._slots = None
        self._plans.clear()

    def register(self, cache: GroupCache[Any]) -> None:
        """From now on the cache loses its entries of a basis when the basis leaves the device."""
        self._caches.add(cache)

    def _drop(self, bases: Set[LoadedBasis]) -> None:
        self.forget()
        for cache in self._caches:
            cache.drop(bases)

    def site_adapters(
        self, plan: FusedPlan, gate: "Gate", inputs: Sequence[GroupInputs] | None
    ) -> "FusedAdapters":
        """See `server.adapters.residency.ResidentAdapters.site_adapters`."""
        # Only here: an installation for a CPU has no triton.
        from server.adapters.batch.fused_batch import FusedAdapters
        from server.adapters.batch.kernel_offsets import KernelOffsets

        if self._offsets is None:
            self._offsets = KernelOffsets()
            for cache in self._offsets.caches:
                self.register(cache)
        if inputs is None:
            inputs = [
                GroupInputs.of(group, pages, self._base.device)
                for group, pages in zip(plan.groups, plan.pages, strict=True)
            ]
        targets = self._base.targets
        return FusedAdapters(
            plan.groups, inputs, plan.rest, self._bank, targets, gate, self._offsets
        )

    def batch(self, slots: Sequence[int]) -> MixedBatch:
        self.begin(slots)
        updates = self._dense.ready
        last = self._batch
        if last is None or last.slots != tuple(slots) or last.updates is not updates:
            self._batch = last = mixed_batch(
                slots,
                self._residents,
                self._base.targets,
                self._bank,
                {basis: loaded.pairs for basis, loaded in self.bases.loaded.items()},
                updates,
                device=self._base.device,
                keep_bytes=_KEEP_BYTES,
            )
        return last

    def plan(self, slots: Sequence[int], *, replayed: bool) -> FusedPlan:
        planned, plan = self._plans.get(replayed, ([], None))
        if plan is None or plan.rest or planned != slots:
            plan = fused_plan(
                slots,
                self._residents,
                self._base.targets,
                self._bank,
                self.bases.loaded,
                self._dense.ready,
                device=self._base.device,
                keep_bytes=_KEEP_BYTES,
                replayed=replayed,
            )
            self._plans[replayed] = (list(slots), plan)
        return plan

    def begin(self, slots: Sequence[int]) -> None:
        """Announce a step by its tokens' slots. Launches read no other rows until the next call."""
        # Dense updates first: they read rows of earlier steps, which are overwritten from here on.
        self._dense.follow(slots, self._residents, self.bases.loaded)
        if self._slots != slots:
            self._slots = list(slots)
            readers = (self._residents.get(slot) for slot in set(slots))
            self._rows = [resident.pages for resident in readers if resident is not None]
        self._bank.begin_step(self._rows)
