"""Packs an adapter's numbers into its row of device memory.

Knows no files and no device. Adapters of one method, rank, scale and choice of linears have equal
places in their files and rows, which are worked out once. Where nothing is folded into the numbers,
vectors that are neighbours in file and row are copied in one piece. Hundreds of small copies for
each adapter would delay the thread that launches the model's steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

import torch
from torch import Tensor

from adapters_store.manifest import Manifest
from adapters_store.weights import Content, TensorTable
from server.adapters.memory.layouts import Layouts, RowLayout
from server.adapters.memory.matrices import BasisNeed, need_of
from server.adapters.methods.method import Method
from server.bases.model import BaseModel, TargetLinear

_MAX_PACKERS: Final = 64


class _Run(NamedTuple):
    """Entries that stay together: from `source` among a file's numbers to `place` in the row."""

    source: int
    place: int
    length: int


@dataclass(frozen=True)
class _Cuts:
    """The runs as sizes of parts. The row's are a gap, a run, a gap and so on to its end."""

    of_numbers: tuple[int, ...]
    of_row: tuple[int, ...]
    order: tuple[int, ...]  # of the file's runs in the row


class RowPacker:
    """Packs adapters that differ in their numbers alone. Safe on any thread.

    Attributes:
        need: what each reads of its basis.
    """

    def __init__(
        self,
        method: Method,
        rank: int,
        scale: float,
        linears: Mapping[str, TargetLinear],
        layout: RowLayout,
        need: BasisNeed,
        table: TensorTable,
    ) -> None:
        self.layout = layout
        self.need = need
        self._method = method
        self._rank = rank
        self._scale = scale
        self._linears = linears
        self._cuts = self._cut(table)

    def pack(self, content: Content, *, pinned: bool = False) -> Tensor:
        """Its row; the same as `pack_plainly`'s."""
        cuts = self._cuts
        if cuts is None:
            return self.pack_plainly(content, pinned=pinned)
        row = self.layout.new_row(pinned=pinned)
        values = content.numbers.split_with_sizes(cuts.of_numbers)
        destinations = row.split_with_sizes(cuts.of_row)[1::2]
        torch._foreach_copy_(destinations, [values[at] for at in cuts.order])
        return row

    def pack_plainly(self, content: Content, *, pinned: bool = False) -> Tensor:
        """Its row, vector by vector."""
        return self.layout.pack(self._folded(content.tensors()), pinned=pinned)

    def _folded(self, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        folded = {}
        for path, linear in self._linears.items():
            names = self._method.shapes(linear, self._rank)
            vectors = {name: tensors[f"{path}.{name}"] for name in names}
            folded[path] = self._method.fold(linear, self._rank, vectors, self._scale)
        return folded

    def _cut(self, table: TensorTable) -> _Cuts | None:
        """None if something is folded into the numbers, or rows of a matrix part in its room."""
        stand_ins = {
            name: torch.empty(shape, device="meta") for name, shape in table.shapes.items()
        }
        begins = dict(zip(table.shapes, accumulate(table.counts, initial=0), strict=False))
        name_of = {id(tensor): name for name, tensor in stand_ins.items()}
        runs = []
        for path, vectors in self._folded(stand_ins).items():
            for vector, value in vectors.items():
                name, place = name_of.get(id(value)), self.layout.place(path, vector)
                if name is None or value.shape[1:] != place.shape[1:]:
                    return None
                runs.append(_Run(begins[name], place.start, value.numel()))
        return _cuts(_joined(sorted(runs)), self.layout.width)


def _joined(runs: list[_Run]) -> list[_Run]:
    """The same in the order of the file, neighbours in file and row joined."""
    joined = runs[:1]
    for run in runs[1:]:
        last = joined[-1]
        if (run.source, run.place) == (last.source + last.length, last.place + last.length):
            joined[-1] = last._replace(length=last.length + run.length)
        else:
            joined.append(run)
    return joined


def _cuts(runs: list[_Run], width: int) -> _Cuts:
    order = sorted(range(len(runs)), key=lambda at: runs[at].place)
    of_row, end = [], 0
    for at in order:
        of_row += [runs[at].place - end, runs[at].length]
        end = runs[at].place + runs[at].length
    return _Cuts(tuple(run.length for run in runs), (*of_row, width - end), tuple(order))


class RowPackers:
    """The packers used lately. Thread-safe."""

    def __init__(self, base: BaseModel, layouts: Layouts) -> None:
        self._base = base
        self._layouts = layouts
        self._known = lru_cache(maxsize=_MAX_PACKERS)(self._make)

    def of(self, method: Method, manifest: Manifest, table: TensorTable) -> RowPacker:
        """The packer of an adapter that `server.adapters.loading.checks` has accepted."""
        return self._known(method, manifest.rank, manifest.scale, manifest.targets, table)

    def _make(
        self, method: Method, rank: int, scale: float, targets: tuple[str, ...], table: TensorTable
    ) -> RowPacker:
        return RowPacker(
            method,
            rank,
            scale,
            {path: self._base.targets[path] for path in targets},
            self._layouts.of(method, rank, targets),
            need_of(method, self._base, targets, rank),
            table,
        )
