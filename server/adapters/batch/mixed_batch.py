"""Turns the slots of a step's tokens into the deltas of every linear: the mixed batch.

Knows no store and no requests. Adapters of one layout and one basis form a group, which shares
matrix products. Where a method's products serve the whole batch, rows of other adapters and of the
base read zeros there; other methods get their own rows alone. Tokens that are served by their
adapter's dense update count as the base's in all groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import torch
from torch import Tensor

from server.adapters.memory.adapter_facts import AdapterFacts
from server.adapters.memory.banks import ZERO_PAGE, Bank, BankRows
from server.adapters.memory.dense_updates import DenseDelta, Update, served_densely, tokens_of
from server.adapters.memory.layouts import RowLayout
from server.adapters.memory.matrices import LoadedBasis
from server.adapters.memory.slots import Resident
from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.method import Delta, Method, Run
from server.bases.model import BaseModel

BASE_SLOT = 0
MAX_REUSED_BYTES: Final = 64 * 2**20
"""Vectors gathered for a group are kept for later steps with the same slots, up to this size."""


@dataclass(frozen=True, eq=False)
class AdapterMemory:
    """What every step reads: the base's linears, the adapters by slot, and their rows."""

    base: BaseModel
    residents: Mapping[int, Resident]
    bank: Bank


@dataclass(frozen=True, eq=False)
class MixedBatch:
    """One step's deltas by module path. Layers that none of its adapters target are absent.

    `updates` are the dense updates that existed when it was built.
    """

    slots: tuple[int, ...]
    updates: Mapping[int, Update]
    deltas: Mapping[str, Sequence[Delta]]


@dataclass
class Group:
    """Adapters of one step that share matrix products."""

    method: Method
    layout: RowLayout
    basis: BasisId
    rank: int = 0
    pages: dict[int, int] = field(default_factory=dict)  # first page by slot
    targets: set[str] = field(default_factory=set)

    def add(self, resident: Resident) -> None:
        facts: AdapterFacts = resident.facts
        whole = facts.method.whole_batch
        self.rank = max(self.rank, facts.rank if whole else facts.layout.padded_rank)
        self.pages[resident.slot] = resident.page
        self.targets |= facts.targets

    def page_of(self, slots: Sequence[int]) -> list[int]:
        """The page that each token reads; the page of zeros where it is another's."""
        return [self.pages.get(slot, ZERO_PAGE) for slot in slots]


def mixed_batch(
    slots: Sequence[int],
    memory: AdapterMemory,
    bases: Mapping[BasisId, LoadedBasis],
    updates: Mapping[int, Update],
) -> MixedBatch:
    """Build the deltas for `slots`, one per token.

    Args:
        updates: dense updates by slot, of whatever adapters have one.
    """
    deltas: dict[str, list[Delta]] = {}
    rest = add_dense(deltas, slots, memory, updates)
    for group in groups_of(rest, memory.residents):
        add_group(deltas, group, rest, memory, bases[group.basis])
    return MixedBatch(tuple(slots), updates, deltas)


def add_dense(
    deltas: dict[str, list[Delta]],
    slots: Sequence[int],
    memory: AdapterMemory,
    updates: Mapping[int, Update],
) -> list[int]:
    """Add the deltas of adapters that are served by a dense update.

    Returns: the slots of the step for all groups, in which those tokens are the base's.
    """
    device = memory.base.device
    dense = served_densely(slots, memory.residents, updates, device)
    for slot in dense:
        at = tokens_of(slot, slots, device)
        for path, update in updates[slot].items():
            deltas.setdefault(path, []).append(DenseDelta(update, at))
    return [BASE_SLOT if slot in dense else slot for slot in slots]


def add_group(
    deltas: dict[str, list[Delta]],
    group: Group,
    slots: Sequence[int],
    memory: AdapterMemory,
    basis: LoadedBasis,
) -> None:
    """Add one group's deltas, by module path; see `mixed_batch`."""
    device = memory.base.device
    whole = group.method.whole_batch
    members = [at for at, slot in enumerate(slots) if whole or slot in group.pages]
    pages = group.page_of([slots[at] for at in members])
    rows = torch.tensor(pages, dtype=torch.int64, device=device)
    runs = _runs(pages)
    reuse = len(pages) * group.layout.row_bytes <= MAX_REUSED_BYTES
    layers = {}
    for path, linear in memory.base.targets.items():
        if path in group.targets:
            stored = memory.bank.layer(group.layout, path, group.rank)
            layers[path] = (linear, BankRows(stored, rows, runs, reuse=reuse))
    of_group = group.method.deltas(layers, group.rank, basis.pairs)
    part = None if len(members) == len(slots) else _Part(torch.tensor(members, device=device))
    for path, delta in of_group.items():
        deltas.setdefault(path, []).append(delta if part is None else _PartDelta(part, delta))


def groups_of(slots: Sequence[int], residents: Mapping[int, Resident]) -> list[Group]:
    """The adapters of a step, those together that share matrix products."""
    groups: dict[tuple[RowLayout, BasisId], Group] = {}
    for slot in sorted(set(slots) - {BASE_SLOT}):
        resident = residents.get(slot)
        if resident is None:
            raise ValueError(f"slot {slot} holds no adapter: acquire one first")
        facts = resident.facts
        key = (facts.layout, facts.basis)
        groups.setdefault(key, Group(facts.method, facts.layout, facts.basis)).add(resident)
    return list(groups.values())


def _runs(pages: Sequence[int]) -> tuple[Run, ...]:
    runs, start = [], 0
    for page, same in groupby(pages):
        stop = start + len(list(same))
        runs.append(Run(page, start, stop))
        start = stop
    return tuple(runs)


class _Part:
    """A group's own rows of a batch; taken once for layers that read the same input."""

    def __init__(self, members: Tensor) -> None:
        self.members = members
        self._x: Tensor | None = None  # kept, so that no other tensor can take its identity
        self._rows = members

    def of(self, x: Tensor, rows: Tensor) -> Tensor:
        if x is not self._x:
            self._x, self._rows = x, rows.index_select(0, self.members)
        return self._rows


@dataclass(slots=True, eq=False)
class _PartDelta:
    """A delta over the rows of its group, the others untouched."""

    _part: _Part
    _delta: Delta

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        own_rows, members = self._part.of(x, rows), self._part.members
        own_y = y.index_select(0, members)
        return y.index_copy_(0, members, self._delta(own_rows, own_rows, own_y))
