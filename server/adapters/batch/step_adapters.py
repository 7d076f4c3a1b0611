"""What a step reads of the adapters in device memory: its batch, or its plan for the fused decoder.

Knows no store and no loading. Only the engine's thread uses this.
"""

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from server.adapters.batch.fused_plan import FusedPlan, fused_plan
from server.adapters.batch.group_cache import GroupCache
from server.adapters.batch.group_inputs import GroupInputs
from server.adapters.batch.mixed_batch import AdapterMemory, MixedBatch, mixed_batch
from server.adapters.memory.banks import Bank
from server.adapters.memory.dense_updates import DenseUpdates
from server.adapters.memory.device_bases import DeviceBases
from server.adapters.memory.matrices import BasisSource, LoadedBasis
from server.adapters.memory.slots import Resident
from server.bases.model import BaseModel

if TYPE_CHECKING:
    from server.adapters.batch.fused_batch import FusedAdapters, Gate
    from server.adapters.batch.kernel_offsets import KernelOffsets


class StepAdapters:
    """Batches and plans, the last of each kept; see `server.adapters.residency`.

    Nothing that is kept here, or in a `group_cache`, outlives the matrices that it reads.
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
        self._memory = AdapterMemory(base, residents, bank)
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

    def group_cache(self, most: int) -> GroupCache[Any]:
        """A cache of at most `most` entries for groups of plans, such as captured graphs.

        When a basis leaves the device, its entries leave the cache first.
        """
        cache: GroupCache[Any] = GroupCache(most)
        self._caches.add(cache)
        return cache

    def _drop(self, bases: Set[LoadedBasis]) -> None:
        self.forget()
        for cache in self._caches:
            cache.drop(bases)

    def begin(self, slots: Sequence[int]) -> None:
        """Announce a step by the slots of all its tokens. Its parts may be planned apart.

        Until the next call, launches read no rows but theirs.
        """
        memory = self._memory
        # Dense updates first: they read rows of earlier steps, which are overwritten from here on.
        self._dense.follow(slots, memory.residents, self.bases.loaded)
        if self._slots != slots:
            self._slots = list(slots)
            readers = (memory.residents.get(slot) for slot in set(slots))
            self._rows = [resident.pages for resident in readers if resident is not None]
        memory.bank.begin_step(self._rows)

    def batch(self, slots: Sequence[int]) -> MixedBatch:
        """The mixed batch of one step: the slot of each token, all acquired, or 0 for the base.

        The same batch is returned again until the slots differ, an adapter is loaded, or a dense
        update is made or dropped.
        """
        self.begin(slots)
        updates, last = self._dense.ready, self._batch
        if last is None or last.slots != tuple(slots) or last.updates is not updates:
            self._batch = last = mixed_batch(slots, self._memory, self.bases.loaded, updates)
        return last

    def plan(self, slots: Sequence[int], *, replayed: bool) -> FusedPlan:
        """A step's adapters, or those of a part of the step, for the fused decoder.

        Args:
            slots: of the part's tokens, all of which `begin` announced.
            replayed: whether a captured graph runs the part.
        """
        planned, plan = self._plans.get(replayed, ([], None))
        if plan is None or plan.rest or planned != slots:
            updates, bases = self._dense.ready, self.bases.loaded
            plan = fused_plan(slots, self._memory, bases, updates, replayed=replayed)
            self._plans[replayed] = (list(slots), plan)
        return plan

    def site_adapters(
        self, plan: FusedPlan, gate: "Gate", inputs: Sequence[GroupInputs] | None = None
    ) -> "FusedAdapters":
        """What the adapters of a plan add to each product of the fused decoder (CUDA).

        Args:
            gate: the MLP's gate where no adapter of the step changes it.
            inputs: tensors that the kernels read and that are filled before each replay; None: they
                are made of the plan's pages.
        """
        # Only here: an installation for a CPU has no triton.
        from server.adapters.batch.fused_batch import FusedAdapters
        from server.adapters.batch.kernel_offsets import MOST, KernelOffsets

        if self._offsets is None:
            self._offsets = KernelOffsets(self.group_cache(MOST), self.group_cache(MOST))
        if inputs is None:
            device = self._memory.base.device
            parts = zip(plan.groups, plan.pages, strict=True)
            inputs = [GroupInputs.of(group, pages, device) for group, pages in parts]
        return FusedAdapters(plan.groups, inputs, plan.rest, self._memory, gate, self._offsets)
