"""Plans a step's adapters for the fused decoder: groups that share launches, and tokens' pages.

Plain data on the host. `server.adapters.batch.fused_batch` runs it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from server.adapters.batch.mixed_batch import AdapterMemory, Group, add_dense, add_group, groups_of
from server.adapters.memory.dense_updates import Update
from server.adapters.memory.layouts import RowLayout
from server.adapters.memory.matrices import LoadedBasis
from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.method import Delta, KernelFamily, Method


@dataclass(frozen=True)
class FusedGroup:
    """Adapters of a step that share launches. Equal groups may share a captured graph.

    Args:
        loaded: compared by identity, for a graph reads the memory of these very matrices.
        rank: of the products; vectors are zero beyond an adapter's own rank.
        without_kernels: the method, if it has no kernels and its own deltas are captured.
        padded_tokens: tokens that those deltas are given, padding included.
    """

    kernels: KernelFamily | None
    layout: RowLayout
    basis: BasisId
    loaded: LoadedBasis
    rank: int
    targets: frozenset[str]
    without_kernels: Method | None = None
    padded_tokens: int = 0


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
    memory: AdapterMemory,
    bases: Mapping[BasisId, LoadedBasis],
    updates: Mapping[int, Update],
    *,
    replayed: bool,
) -> FusedPlan:
    """The plan for `slots`, one per token; see `server.adapters.batch.mixed_batch.mixed_batch`.

    Args:
        replayed: for a captured graph: there is no `rest` then, and no dense update is used.
    """
    deltas: dict[str, list[Delta]] = {}
    rest = add_dense(deltas, slots, memory, {} if replayed else updates)
    groups: list[FusedGroup] = []
    pages: list[np.ndarray] = []
    for group in groups_of(rest, memory.residents):
        if replayed or group.method.kernels is not None:
            pages.append(np.array(group.page_of(rest), dtype=np.int64))
            groups.append(_fused(group, bases[group.basis], int(np.count_nonzero(pages[-1]))))
        else:
            add_group(deltas, group, rest, memory, bases[group.basis])
    return FusedPlan(tuple(groups), tuple(pages), deltas)


def _fused(group: Group, loaded: LoadedBasis, tokens: int) -> FusedGroup:
    size, rank, method = loaded.need.size, group.rank, group.method
    if method.whole_batch:
        # All that is loaded, not what this step needs: so one captured graph serves every step.
        rank = min(size.a_rank, size.b_rank, group.layout.padded_rank)
    fused = method.kernels is not None
    return FusedGroup(
        method.kernels,
        group.layout,
        group.basis,
        loaded,
        rank,
        frozenset(group.targets),
        None if fused else method,
        0 if fused else 1 << (tokens - 1).bit_length(),
    )
