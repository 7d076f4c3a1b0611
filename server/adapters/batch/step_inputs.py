"""What a step reads of the adapters in device memory: its batch, or its plan for the fused decoder.

Knows no store and no loading. Only the engine's thread comes here.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from server.adapters.batch.fused_plan import FusedPlan, fused_plan
from server.adapters.batch.mixed_batch import MixedBatch, mixed_batch
from server.adapters.memory.banks import Bank
from server.adapters.memory.dense_updates import DenseUpdates
from server.adapters.memory.device_bases import DeviceBases
from server.adapters.memory.slots import Occupant
from server.bases.model import BaseModel

_KEEP_BYTES: Final = 64 * 2**20  # vectors gathered for one batch, held while its slots are the same


class Steps:
    """Batches and plans, the last of each kept; see `server.adapters.residency`."""

    def __init__(
        self,
        base: BaseModel,
        occupants: Mapping[int, Occupant],
        bank: Bank,
        bases: DeviceBases,
        dense: DenseUpdates,
    ) -> None:
        self._base = base
        self._occupants = occupants
        self._bank = bank
        self._bases = bases
        self._dense = dense
        self._batch: MixedBatch | None = None
        # Of decodes and of the rest of a step, by whether it is replayed.
        self._plans: dict[bool, tuple[list[int], FusedPlan]] = {}
        self._slots: list[int] | None = None  # of the last step, unless an adapter came since
        self._rows: list[range] = []

    def forget(self) -> None:
        """An adapter comes: what was kept no longer holds."""
        self._batch = self._slots = None
        self._plans.clear()

    def batch(self, slots: Sequence[int]) -> MixedBatch:
        self.begin(slots)
        updates = self._dense.ready
        last = self._batch
        if last is None or last.slots != tuple(slots) or last.updates is not updates:
            self._batch = last = mixed_batch(
                slots,
                self._occupants,
                self._base.targets,
                self._bank,
                {basis: held.bases for basis, held in self._bases.held.items()},
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
                self._occupants,
                self._base.targets,
                self._bank,
                self._bases.held,
                self._dense.ready,
                device=self._base.device,
                keep_bytes=_KEEP_BYTES,
                replayed=replayed,
            )
            self._plans[replayed] = (list(slots), plan)
        return plan

    def begin(self, slots: Sequence[int]) -> None:
        """A step comes, of these tokens' slots; what is launched until the next reads no others."""
        # Dense updates first: they read rows of earlier steps, which this one may not.
        self._dense.follow(slots, self._occupants, self._bases.held)
        if self._slots != slots:
            self._slots = list(slots)
            held = (self._occupants.get(slot) for slot in set(slots))
            self._rows = [occupant.pages for occupant in held if occupant is not None]
        self._bank.begin_step(self._rows)
