"""Keeps updates of the busiest adapters as whole matrices, within a budget of device memory.

Knows no method's formula and no requests. An update belongs to one `Resident`, so that the next
adapter in the slot cannot get it. Only the engine's thread uses this.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from server.adapters.memory.banks import Bank
from server.adapters.memory.matrices import LoadedBasis
from server.adapters.memory.slots import Resident
from server.adapters.methods.basis_id import BasisId
from server.bases.model import BaseModel

HALF_LIFE: Final = 256
"""Steps after which a token counts half."""

BUSY: Final = 64
"""Tokens lately from which an adapter is worth an update: by decision 8's arithmetic, more than it
takes to pay for itself."""

DENSE_FROM: Final = {"cpu": 16, "cuda": 8}
"""The tokens of a step from which an adapter is served by its update whatever the others do.

Decision 8 has the tables: 8 tokens each are enough at every shape. Beside tokens that are gathered
anyway, one more costs 1 to 2 us at a width of 2048 and 7 to 14 at 4096, and a product by an update
11 to 32.
"""

DENSE_FEW: Final = {"cpu": 0, "cuda": 3}
"""So many adapters of fewer tokens are served by their updates if that leaves nobody to gather.

To gather at all costs 67 us or more, about three products by updates of an 8B model.
"""

Update = Mapping[str, Tensor]
"""What an adapter adds to each of its linears, [out, in] by module path."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Usage:
    """A resident adapter and its tokens lately: `tokens` as they counted at `step`."""

    resident: Resident
    size: int  # bytes of its update; 0: its method has none
    tokens: float = 0.0
    step: int = 0

    def heat(self, step: int) -> float:
        """Tokens lately."""
        return float(self.tokens * 0.5 ** ((step - self.step) / HALF_LIFE))


@dataclass(eq=False)
class _PartialUpdate:
    """The update of an adapter that was given memory; complete when no path is `missing`."""

    adapter: _Usage
    missing: list[str]
    update: dict[str, Tensor] = field(default_factory=dict)


class DenseUpdates:
    """Follows the steps, and makes, keeps and drops updates: the coldest leaves for a hotter one.

    `ready` holds the complete ones by slot, and is another object whenever that changes.

    Args:
        max_bytes: of all updates together; 0: none are made. An adapter that needs more has none.
    """

    def __init__(self, base: BaseModel, bank: Bank, max_bytes: int) -> None:
        self.ready: Mapping[int, Update] = {}
        self._base = base
        self._bank = bank
        self._max_bytes = max_bytes
        self._step = 0
        self._usage: dict[int, _Usage] = {}  # by slot
        self._updates: dict[int, _PartialUpdate] = {}  # by slot; one of them at most is incomplete

    @property
    def bytes(self) -> int:
        """Device memory of all updates, those in the making as large as they will be."""
        return sum(partial.adapter.size for partial in list(self._updates.values()))

    def follow(
        self,
        slots: Sequence[int],
        residents: Mapping[int, Resident],
        bases: Mapping[BasisId, LoadedBasis],
    ) -> None:
        """Count the tokens of the step that comes, and make one linear's update if one is due.

        One a step, so that no step takes much longer: 4096 -> 14336 is 0.5 TFLOP.
        """
        if not self._max_bytes:
            return
        self._step += 1
        self._drop(
            {s for s, it in self._updates.items() if residents.get(s) is not it.adapter.resident}
        )
        in_step = self._count(slots, residents)
        for slot, partial in self._updates.items():
            if partial.missing:
                self._make(slot, partial, bases)
                return
        self._begin(in_step)

    def _count(self, slots: Sequence[int], residents: Mapping[int, Resident]) -> dict[int, _Usage]:
        """The adapters of the step that could have an update, by slot."""
        in_step = {}
        for slot, tokens in Counter(slots).items():
            resident = residents.get(slot)
            if resident is None:
                continue
            adapter = self._usage.get(slot)
            if adapter is None or adapter.resident is not resident:
                adapter = self._usage[slot] = _Usage(resident, self._size(resident))
            if adapter.size:
                adapter.tokens = adapter.heat(self._step) + tokens
                adapter.step = self._step
                in_step[slot] = adapter
        return in_step

    def _begin(self, in_step: Mapping[int, _Usage]) -> None:
        """Give room to the busiest adapter of the step that has none, if it is busy enough.

        Nothing is computed before the next step, when no batch keeps an update that left.
        """
        waiting = [
            slot
            for slot, adapter in in_step.items()
            if slot not in self._updates
            and adapter.size <= self._max_bytes
            and adapter.tokens >= BUSY
        ]
        if not waiting:
            return
        slot = max(waiting, key=lambda waits: in_step[waits].tokens)
        leaving = self._leaving_for(in_step[slot], in_step)
        if leaving is None:
            return
        self._drop(leaving)
        paths = sorted(in_step[slot].resident.facts.targets)
        self._updates[slot] = _PartialUpdate(in_step[slot], missing=paths)

    def _leaving_for(self, busiest: _Usage, in_step: Mapping[int, _Usage]) -> set[int] | None:
        """The slots whose updates make room for another, coldest first; None if that is too little.

        None of them has a token in this step, nor half of the other's lately: two adapters must
        not take turns.
        """
        heat = {slot: partial.adapter.heat(self._step) for slot, partial in self._updates.items()}
        idle = [s for s in heat if s not in in_step and 2 * heat[s] < busiest.tokens]
        free, leaving = self._max_bytes - self.bytes, set[int]()
        for slot in sorted(idle, key=heat.__getitem__):
            if free >= busiest.size:
                break
            leaving.add(slot)
            free += self._updates[slot].adapter.size
        return leaving if free >= busiest.size else None

    def _make(
        self, slot: int, partial: _PartialUpdate, bases: Mapping[BasisId, LoadedBasis]
    ) -> None:
        path = partial.missing.pop()
        try:
            partial.update[path] = self._merged(partial.adapter.resident, path, bases)
        except torch.OutOfMemoryError:
            # Serving goes on as before; asking for more at every step would only slow it down.
            del self._updates[slot]
            self._max_bytes = self.bytes
            log.warning(
                "the device has no memory left for dense updates: no more than %d bytes are used "
                "from now on; lower dense_memory_mb, or kv_memory_mb",
                self._max_bytes,
            )
            return
        if not partial.missing:
            self._list_ready()

    def _merged(
        self, resident: Resident, path: str, bases: Mapping[BasisId, LoadedBasis]
    ) -> Tensor:
        facts = resident.facts
        rank = facts.layout.padded_rank
        stored = self._bank.layer(facts.layout, path, rank)
        vectors = {name: rows[resident.page] for name, rows in stored.items()}
        pair = bases[facts.basis].pairs[path]
        return facts.method.merged(self._base.targets[path], rank, pair, vectors)

    def _drop(self, slots: Collection[int]) -> None:
        for slot in slots:
            del self._updates[slot]
        if not self.ready.keys().isdisjoint(slots):
            self._list_ready()

    def _list_ready(self) -> None:
        self.ready = {
            slot: partial.update for slot, partial in self._updates.items() if not partial.missing
        }

    def _size(self, resident: Resident) -> int:
        facts = resident.facts
        if not facts.method.mergeable:
            return 0
        linears = (self._base.targets[path] for path in facts.targets)
        return self._base.dtype.itemsize * sum(it.in_features * it.out_features for it in linears)


def served_densely(
    slots: Sequence[int],
    residents: Mapping[int, Resident],
    updates: Mapping[int, Update],
    device: torch.device,
) -> set[int]:
    """The slots of a step whose tokens are served by their updates: see the constants."""
    if not updates:
        return set()
    tokens = Counter(slots)
    many = {slot for slot in updates if tokens[slot] >= DENSE_FROM[device.type]}
    rest = (tokens.keys() - many) & residents.keys()
    others = {slot for slot in rest if residents[slot].facts.method.mergeable}
    if len(others) <= DENSE_FEW[device.type] and others <= updates.keys():
        return many | others
    return many


class DenseDelta:
    """`server.adapters.methods.method.Delta` of the tokens `at` of a step, by one update [out,
    in]."""

    __slots__ = ("_at", "_update")

    def __init__(self, update: Tensor, at: slice | Tensor) -> None:
        self._update = update.t()
        self._at = at

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        if isinstance(self._at, slice):
            y[self._at].addmm_(rows[self._at], self._update)
            return y
        return y.index_add_(0, self._at, rows.index_select(0, self._at) @ self._update)


def tokens_of(slot: int, slots: Sequence[int], device: torch.device) -> slice | Tensor:
    """Where `slot` stands in a step: neighbours as a slice, which products read where they lie."""
    at = [token for token, it in enumerate(slots) if it == slot]
    if at[-1] - at[0] + 1 == len(at):
        return slice(at[0], at[-1] + 1)
    return torch.tensor(at, device=device)
