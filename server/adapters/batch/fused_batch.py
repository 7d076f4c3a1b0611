"""Adds a step's adapters to the fused decoder's products: a few kernels for each site (CUDA).

It does what `server.adapters.batch.mixed_batch` does linear by linear in torch's own operations,
with the same groups; that is the plain reference. Methods without kernels run their own deltas: in
a captured graph over as many tokens as there is room for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.adapters.batch.fused_plan import FusedGroup
from server.adapters.batch.group_inputs import GroupInputs
from server.adapters.batch.kernel_offsets import KernelOffsets
from server.adapters.batch.mixed_batch import AdapterMemory
from server.adapters.batch.sites import Site
from server.adapters.kernels.lora_expand import LoraPart, expand
from server.adapters.kernels.lora_gate import expand_gate
from server.adapters.kernels.lora_shrink import shrink
from server.adapters.kernels.vera_gate import gate_vera
from server.adapters.kernels.vera_product_kernel import add_vera
from server.adapters.memory.banks import BankRows
from server.adapters.methods.method import BasisPair, Delta, KernelFamily, Run

Gate = Callable[[Tensor, int, bool], Tensor]
"""`silu(gate) * up` of [tokens, at least 2 * width] and width; True: with GELU in silu's place."""


class FusedAdapters:
    """`server.engine.fused.decoder.SiteAdapters` of one step, or of all steps of a graph."""

    def __init__(
        self,
        groups: Sequence[FusedGroup],
        inputs: Sequence[GroupInputs],
        rest: Mapping[str, Sequence[Delta]],
        memory: AdapterMemory,
        gate: Gate,
        offsets: KernelOffsets,
    ) -> None:
        self._running = [
            _running(group, its_inputs, memory, offsets)
            for group, its_inputs in zip(groups, inputs, strict=True)
        ]
        self._rest = rest
        self._gate = gate

    def rides(self, site: Site) -> bool:
        return any(group.rides(site) for group in self._running)

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        for group in self._running:
            group.add(site, x, y)
        self._add_rest(site, x, y)

    def gate(self, site: Site, x: Tensor, y: Tensor, is_gelu: bool) -> Tensor:
        gating = (g for g in self._running if isinstance(g, _Kernels) and g.gates(site))
        last = next(gating, None)
        for group in self._running:
            if group is not last:
                group.add(site, x, y)
        self._add_rest(site, x, y)
        if last is None:
            return self._gate(y, site.width // 2, is_gelu)
        return last.gate(site, x, y, is_gelu)

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
    group: FusedGroup, inputs: GroupInputs, memory: AdapterMemory, offsets: KernelOffsets
) -> "_Kernels | _WithoutKernels":
    if group.without_kernels is not None:
        return _WithoutKernels(group, inputs, memory)
    kind = _ScaledPair if group.kernels is KernelFamily.SCALED_PAIR else _LowRank
    return kind(group, inputs, memory.bank.memory, offsets)


@dataclass(eq=False)
class _Kernels(ABC):
    """A group whose method has kernels."""

    _group: FusedGroup
    _inputs: GroupInputs
    _memory: Tensor
    _offsets: KernelOffsets

    @abstractmethod
    def gates(self, site: Site) -> bool:
        """Whether `gate` can stand in for `add` and the base's own gate."""

    @abstractmethod
    def add(self, site: Site, x: Tensor, y: Tensor) -> None: ...

    @abstractmethod
    def gate(self, site: Site, x: Tensor, y: Tensor, is_gelu: bool) -> Tensor: ...

    def rides(self, site: Site) -> bool:
        """Whether the random A of the group rides in the site's product."""
        riding = site.riding
        return (
            riding is not None
            and riding.basis == self._group.basis
            and riding.rank >= self._group.rank
            and not self._group.targets.isdisjoint(site.columns)
        )

    def _project(self, site: Site, pair: BasisPair, x: Tensor, y: Tensor) -> Tensor:
        """`A x` by the random A, [tokens, rank]: out of the site's product if A rides there."""
        rank = self._group.rank
        if self.rides(site):
            return y[:, site.width : site.width + rank]
        return torch.mm(x, pair.a[:rank, : x.shape[1]].t())


class _ScaledPair(_Kernels):
    def gates(self, site: Site) -> bool:
        return len(self._offsets.vera(self._group, site)) == 1

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        for pair, parts in self._offsets.vera(self._group, site):
            z = self._project(site, pair, x, y)
            present = tuple(part for part in parts if part is not None)
            rank = self._group.rank
            add_vera(y, z, pair.bt, self._memory, self._inputs.pages, present, rank)

    def gate(self, site: Site, x: Tensor, y: Tensor, is_gelu: bool) -> Tensor:
        [(pair, (gate_part, up_part))] = self._offsets.vera(self._group, site)
        z = self._project(site, pair, x, y)
        rows = (self._memory, self._inputs.pages)
        width, rank = site.width // 2, self._group.rank
        parts = (gate_part, up_part)
        return gate_vera(y, z, pair.bt, *rows, *parts, width, rank, is_gelu=is_gelu)


class _WithoutKernels:
    """The deltas of a method without kernels, over its own tokens, their vectors gathered."""

    def __init__(self, group: FusedGroup, inputs: GroupInputs, memory: AdapterMemory) -> None:
        assert group.without_kernels is not None
        self._inputs = inputs
        # Every token by itself: which of them share an adapter is not known to a graph.
        runs = [Run(row=-1, start=at, stop=at + 1) for at in range(group.padded_tokens)]
        layers, targets = {}, memory.base.targets
        for path in targets.keys() & group.targets:
            stored = memory.bank.layer(group.layout, path, group.rank)
            layers[path] = (targets[path], BankRows(stored, inputs.pages, runs, reuse=False))
        self._deltas = group.without_kernels.deltas(layers, group.rank, group.loaded.pairs)

    def rides(self, site: Site) -> bool:
        return False

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        paths = [path for path in site.columns if path in self._deltas]
        if not paths:
            return
        members = self._inputs.members
        own_x = x.index_select(0, members)
        for path in paths:
            columns = site.columns[path]
            nothing = y.new_zeros(len(members), columns.stop - columns.start)
            delta = self._deltas[path](own_x, own_x, nothing)
            y[:, columns].index_add_(0, members, torch.where(self._inputs.real, delta, 0))


@dataclass(eq=False)
class _LowRank(_Kernels):
    """`lora`, and `asymmetric-lora` with B trained; with A trained, B is shared and random."""

    def __post_init__(self) -> None:
        assert self._inputs.segments is not None
        self._segments = self._inputs.segments
        any_path = next(iter(self._group.targets))
        self._trained = frozenset(self._group.layout.starts(any_path))

    def rides(self, site: Site) -> bool:
        return "A" not in self._trained and super().rides(site)

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        parts = self._offsets.lora(self._group, site)
        if not parts:
            return
        s = self._down(site, x, y, parts)
        if "B" in self._trained:
            expand(y, s, self._memory, self._segments, parts, self._group.rank)
        else:
            self._add_frozen_b(site, s, y)

    def gates(self, site: Site) -> bool:
        return "B" in self._trained and len(self._offsets.lora(self._group, site)) > 0

    def gate(self, site: Site, x: Tensor, y: Tensor, is_gelu: bool) -> Tensor:
        parts = self._offsets.lora(self._group, site)
        s, by_column = self._down(site, x, y, parts), {part.column: part for part in parts}
        gate, up = (by_column.get(columns.start) for columns in site.columns.values())
        rows = (self._memory, self._segments, self._inputs.pages)
        return expand_gate(y, s, *rows, gate, up, site.width // 2, self._group.rank, is_gelu)

    def _down(self, site: Site, x: Tensor, y: Tensor, parts: Sequence[LoraPart]) -> Tensor:
        """`A x` as `expand` takes it."""
        if "A" in self._trained:
            return shrink(x, self._memory, self._segments, parts, self._group.rank)
        path = next(path for path in site.columns if path in self._group.targets)
        z = self._project(site, self._group.loaded.pairs[path], x, y)
        return z[None, :, None, :].expand(1, -1, len(parts), -1)

    def _add_frozen_b(self, site: Site, s: Tensor, y: Tensor) -> None:
        # Rows of other groups' tokens are undefined: they may be infinite or not a number.
        is_own = (self._inputs.pages > 0)[:, None, None]
        own = s.sum(0).masked_fill_(~is_own, 0).to(y.dtype)
        targeted = [path for path in site.columns if path in self._group.targets]
        for index, path in enumerate(targeted):
            columns = site.columns[path]
            width = columns.stop - columns.start
            bt = self._group.loaded.pairs[path].bt[: self._group.rank, :width]
            y[:, columns].addmm_(own[:, index], bt)
