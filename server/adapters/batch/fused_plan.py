"""Which adapters a step has, for the fused decoder: groups that share launches, tokens' pages.

Plain data on the host; `server.adapters.batch.fused_batch` runs it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from server.adapters.batch.mixed_batch import Group, add_dense, add_group, groups_of
from server.adapters.memory.banks import Bank
from server.adapters.memory.dense_updates import Update
from server.adapters.memory.layouts import RowLayout
from server.adapters.memory.matrices import HeldBases
from server.adapters.memory.slots import Occupant
from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.method import Delta, Method
from server.bases.model import TargetLinear

WITH_KERNELS: Final = frozenset({"vera", "lora", "asymmetric-lora"})


@dataclass(frozen=True)
class FusedGroup:
    """Adapters of a step that share launches; equal groups may share a captured graph.

    Args:
        held: by identity, for a graph reads its very memory.
        rank: of what is multiplied; vectors are zero beyond an adapter's own.
        own: a method without kernels, whose own deltas are captured; None: it has kernels.
        room: tokens that `own` is given, padding included.
    """

    method: str
    layout: RowLayout
    basis: BasisId
    held: HeldBases
    rank: int
    targets: frozenset[str]
    own: Method | None = None
    room: int = 0


@dataclass(frozen=True, eq=False)
class FusedPlan:
    """One step's adapters on the host.

    Attributes:
        pages: for each group the page of each token, int64 [tokens]; 0 where it is another's.
        rest: deltas of methods without kernels, by module path.
    """

    groups: tuple[FusedGroup, ...]
    pages: tuple[np.ndarray, ...]
    rest: Mapping[str, Sequence[Delta]]


def fused_plan(
    slots: Sequence[int],
    occupants: Mapping[int, Occupant],
    targets: Mapping[str, TargetLinear],
    bank: Bank,
    bases: Mapping[BasisId, HeldBases],
    updates: Mapping[int, Update],
    *,
    device: torch.device,
    keep_bytes: int,
    replayed: bool,
) -> FusedPlan:
    """The plan for `slots`, one per token; see `server.adapters.batch.mixed_batch.mixed_batch`.

    Args:
        replayed: for a captured graph: there is no `rest` then, and no dense update is used.
    """
    deltas: dict[str, list[Delta]] = {}
    used = {} if replayed else updates
    rest = add_dense(deltas, slots, occupants, used, device)
    groups: list[FusedGroup] = []
    pages: list[np.ndarray] = []
    for group in groups_of(rest, occupants):
        if replayed or group.method.name in WITH_KERNELS:
            pages.append(np.array(group.page_of(rest), dtype=np.int64))
            groups.append(_fused(group, bases[group.basis], int(np.count_nonzero(pages[-1]))))
        else:
            pairs = {group.basis: bases[group.basis].bases}
            add_group(deltas, group, rest, targets, bank, pairs, device, keep_bytes)
    return FusedPlan(tuple(groups), tuple(pages), deltas)


def _fused(group: Group, held: HeldBases, tokens: int) -> FusedGroup:
    size, rank, method = held.need.size, group.rank, group.method
    if method.whole_batch:
        # What is there to read rather than what this step needs: one captured graph serves all.
        rank = min(size.a_rank, size.b_rank, group.layout.room_rank)
    own = method.name not in WITH_KERNELS
    return FusedGroup(
        method.name,
        group.layout,
        group.basis,
        held,
        rank,
        frozenset(group.targets),
        method if own else None,
        1 << (tokens - 1).bit_length() if own else 0,
    )
