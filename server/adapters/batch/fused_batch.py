"""A step's adapters as the fused decoder adds them: a few kernels for each site (CUDA).

What `server.adapters.batch.mixed_batch` does linear by linear in torch's own operations, and by the
same grouping; that is the plain reference. Methods without kernels go on through their own deltas,
in a captured graph over as many tokens as there is room for.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from server.adapters.batch.fused_plan import FusedGroup
from server.adapters.batch.site_parts import KernelOffsets
from server.adapters.batch.sites import Site
from server.adapters.kernels.lora_expand import LoraPart, expand
from server.adapters.kernels.lora_gate import expand_gate
from server.adapters.kernels.lora_shrink import shrink
from server.adapters.kernels.segments import Segments, capacity_for, segment_table
from server.adapters.kernels.vera_gate import gate_vera
from server.adapters.kernels.vera_product import add_vera
from server.adapters.memory.banks import Bank, BankRows
from server.adapters.methods.method import BasisPair, Delta, Run
from server.bases.model import TargetLinear

Gate = Callable[[Tensor, int], Tensor]
"""`silu(gate) * up` of [tokens, at least 2 * width] and width."""


class Inputs:
    """What a group's kernels read of a step, in tensors that may be refilled.

    Attributes:
        pages: int64 [capacity], of each token; 0: it is not the group's. For a method without
            kernels int64 [room], of its own tokens alone.
        segments: the same by adapter, for methods whose matrices are adapters' own.
        members: int64 [room], which tokens those are; `real`: bool [room, 1], not padding.

    Args:
        capacity: tokens of the step, padding included.
        segments: adapters' runs of tokens that there is room for; see `capacity_for`.
    """

    def __init__(
        self, group: FusedGroup, capacity: int, segments: int, device: torch.device
    ) -> None:
        self._own = group.own is not None
        self.pages = torch.zeros(group.room or capacity, dtype=torch.int64, device=device)
        self.segments: Segments | None = None
        if self._own:
            self.members = torch.zeros(group.room, dtype=torch.int64, device=device)
            self.real = torch.zeros(group.room, 1, dtype=torch.bool, device=device)
        elif group.method != "vera":
            self.segments = Segments.of((), segments, device)

    @classmethod
    def of(cls, group: FusedGroup, pages: np.ndarray, device: torch.device) -> "Inputs":
        """Those of one step."""
        made = cls(group, len(pages), capacity_for(len(pages), len(np.unique(pages))), device)
        made.fill(pages)
        return made

    def fill(self, pages: np.ndarray) -> None:
        """Take the pages of a step; tokens beyond them are the base's."""
        if self._own:
            self._fill_members(pages)
            return
        padded = np.zeros(len(self.pages), dtype=np.int64)
        padded[: len(pages)] = pages
        refill(self.pages, padded)
        if self.segments is not None:
            refill(self.segments.table, segment_table(pages, self.segments.capacity))

    def _fill_members(self, pages: np.ndarray) -> None:
        """Padding reads the first token's row: the row of zeros may be too short for the method."""
        found = np.flatnonzero(pages)
        members = np.full(len(self.members), found[0])
        members[: len(found)] = found
        refill(self.members, members)
        refill(self.pages, pages[members])
        refill(self.real, np.arange(len(members))[:, None] < len(found))


def refill(tensor: Tensor, numbers: np.ndarray) -> None:
    """Overwrite a tensor without making the host wait."""
    source = torch.from_numpy(numbers)
    tensor.copy_(source.pin_memory() if tensor.is_cuda else source, non_blocking=True)


class FusedAdapters:
    """`server.engine.fused.decoder.SiteAdapters` of one step, or of all steps of a graph."""

    def __init__(
        self,
        groups: Sequence[FusedGroup],
        inputs: Sequence[Inputs],
        rest: Mapping[str, Sequence[Delta]],
        bank: Bank,
        targets: Mapping[str, TargetLinear],
        gate: Gate,
        parts: KernelOffsets,
    ) -> None:
        self._running = [
            _running(group, given, bank, targets, parts)
            for group, given in zip(groups, inputs, strict=True)
        ]
        self._rest = rest
        self._gate = gate

    def rides(self, site: Site) -> bool:
        return any(group.rides(site) for group in self._running)

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        for group in self._running:
            group.add(site, x, y)
        self._add_rest(site, x, y)

    def gate(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        gating = (g for g in self._running if not isinstance(g, _Own) and g.gates(site))
        last = next(gating, None)
        for group in self._running:
            if group is not last:
                group.add(site, x, y)
        self._add_rest(site, x, y)
        return self._gate(y, site.width // 2) if last is None else last.gate(site, x, y)

    def _add_rest(self, site: Site, x: Tensor, y: Tensor) -> None:
        if not self._rest:
            return
        for path, columns in site.columns.items():
            for delta in self._rest.get(path, ()):
                view = y[:, columns]
                result = delta(x, x, view)
                if result is not view:
                    view.copy_(result)


def _running(
    group: FusedGroup,
    inputs: Inputs,
    bank: Bank,
    targets: Mapping[str, TargetLinear],
    parts: KernelOffsets,
) -> "_Vera | _LowRank | _Own":
    if group.own is not None:
        return _Own(group, inputs, bank, targets)
    kind = _Vera if group.method == "vera" else _LowRank
    return kind(group, inputs, bank.memory, parts)


class _Shared:
    """`A x` of a group that reads a random A: from the product where it rides, else made."""

    def __init__(self, group: FusedGroup) -> None:
        self.group = group

    def rides(self, site: Site) -> bool:
        riding = site.riding
        return (
            riding is not None
            and riding.basis == self.group.basis
            and riding.rank >= self.group.rank
            and not self.group.targets.isdisjoint(site.columns)
        )

    def project(self, site: Site, pair: BasisPair, x: Tensor, y: Tensor) -> Tensor:
        """[tokens, rank]."""
        rank = self.group.rank
        if self.rides(site):
            return y[:, site.width : site.width + rank]
        return torch.mm(x, pair.a[:rank, : x.shape[1]].t())


class _Vera:
    def __init__(
        self, group: FusedGroup, inputs: Inputs, memory: Tensor, parts: KernelOffsets
    ) -> None:
        self._group = group
        self._shared = _Shared(group)
        self._inputs = inputs
        self._memory = memory
        self._parts = parts

    def rides(self, site: Site) -> bool:
        return self._shared.rides(site)

    def gates(self, site: Site) -> bool:
        return len(self._parts.vera(self._group, site)) == 1

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        for pair, parts in self._parts.vera(self._group, site):
            z = self._shared.project(site, pair, x, y)
            present = tuple(part for part in parts if part is not None)
            rank = self._group.rank
            add_vera(y, z, pair.bt, self._memory, self._inputs.pages, present, rank)

    def gate(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        [(pair, (gate_part, up_part))] = self._parts.vera(self._group, site)
        z = self._shared.project(site, pair, x, y)
        return gate_vera(
            y,
            z,
            pair.bt,
            self._memory,
            self._inputs.pages,
            gate_part,
            up_part,
            site.width // 2,
            self._group.rank,
        )


class _Own:
    """A method's own deltas over its own tokens, their vectors gathered."""

    def __init__(
        self, group: FusedGroup, inputs: Inputs, bank: Bank, targets: Mapping[str, TargetLinear]
    ) -> None:
        assert group.own is not None
        self._inputs = inputs
        # Every token by itself: which of them share an adapter is not known to a graph.
        runs = [Run(row=-1, start=at, stop=at + 1) for at in range(group.room)]
        layers = {}
        for path in targets.keys() & group.targets:
            stored = bank.layer(group.layout, path, group.rank)
            layers[path] = (targets[path], BankRows(stored, inputs.pages, runs, keep=False))
        self._deltas = group.own.deltas(layers, group.rank, group.held.bases)

    def rides(self, site: Site) -> bool:
        return False

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        found = [path for path in site.columns if path in self._deltas]
        if not found:
            return
        members = self._inputs.members
        mine = x.index_select(0, members)
        for path in found:
            columns = site.columns[path]
            nothing = y.new_zeros(len(members), columns.stop - columns.start)
            made = self._deltas[path](mine, mine, nothing)
            y[:, columns].index_add_(0, members, torch.where(self._inputs.real, made, 0))


class _LowRank:
    """`lora`, and `asymmetric-lora` with B trained; with A trained, B is shared and random."""

    def __init__(
        self, group: FusedGroup, inputs: Inputs, memory: Tensor, parts: KernelOffsets
    ) -> None:
        self._group = group
        self._shared = _Shared(group)
        assert inputs.segments is not None
        self._segments = inputs.segments
        self._pages = inputs.pages
        self._memory = memory
        self._parts = parts
        any_path = next(iter(group.targets))
        self._trained = frozenset(group.layout.starts(any_path))

    def rides(self, site: Site) -> bool:
        return "A" not in self._trained and self._shared.rides(site)

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        parts = self._parts.lora(self._group, site)
        if not parts:
            return
        s = self._down(site, x, y, parts)
        if "B" in self._trained:
            expand(y, s, self._memory, self._segments, parts, self._group.rank)
        else:
            self._add_frozen_b(site, s, y)

    def gates(self, site: Site) -> bool:
        return "B" in self._trained and len(self._parts.lora(self._group, site)) > 0

    def gate(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        parts = self._parts.lora(self._group, site)
        s, by_column = self._down(site, x, y, parts), {part.column: part for part in parts}
        gate, up = (by_column.get(columns.start) for columns in site.columns.values())
        return expand_gate(
            y,
            s,
            self._memory,
            self._segments,
            self._pages,
            gate,
            up,
            site.width // 2,
            self._group.rank,
        )

    def _down(self, site: Site, x: Tensor, y: Tensor, parts: Sequence[LoraPart]) -> Tensor:
        """`A x` as `expand` takes it."""
        if "A" in self._trained:
            return shrink(x, self._memory, self._segments, parts, self._group.rank)
        path = next(path for path in site.columns if path in self._group.targets)
        z = self._shared.project(site, self._group.held.bases[path], x, y)
        return z[None, :, None, :].expand(1, -1, len(parts), -1)

    def _add_frozen_b(self, site: Site, s: Tensor, y: Tensor) -> None:
        # Rows of other groups' tokens hold whatever the memory held.
        mine = (self._pages > 0)[:, None, None]
        own = s.sum(0).masked_fill_(~mine, 0).to(y.dtype)
        targeted = [path for path in site.columns if path in self._group.targets]
        for index, path in enumerate(targeted):
            columns = site.columns[path]
            width = columns.stop - columns.start
            bt = self._group.held.bases[path].bt[: self._group.rank, :width]
            y[:, columns].addmm_(own[:, index], bt)
