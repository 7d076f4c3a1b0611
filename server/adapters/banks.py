"""Where vectors lie in device memory: one row per slot, all layers side by side.

Knows no adapter and no method beyond its shapes. One row per adapter, rather than one tensor per
layer and vector, makes loading a single copy whatever the model's depth.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from server.adapters.method import Method, Vectors
from server.bases.model import TargetLinear

_ALIGNMENT = 16  # entries: 32 or 64 bytes, so that every layer starts on a vector load
BASE_SLOT: Final = 0


@dataclass(frozen=True)
class _Place:
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


class RowLayout:
    """The place of every layer's vectors, at the largest rank, in a row of `width` entries."""

    def __init__(
        self, method: Method, targets: Mapping[str, TargetLinear], max_rank: int, dtype: torch.dtype
    ) -> None:
        self._method = method
        self._targets = targets
        self._dtype = dtype
        self._places: dict[str, dict[str, _Place]] = {}
        end = 0
        for path, linear in targets.items():
            self._places[path] = {}
            for name, shape in method.room(linear, max_rank).items():
                place = _Place(end, tuple(shape))
                self._places[path][name] = place
                end = -(-place.stop // _ALIGNMENT) * _ALIGNMENT
        self.width = end

    @property
    def row_bytes(self) -> int:
        return self.width * self._dtype.itemsize

    def pack(self, layers: Mapping[str, Vectors], *, pinned: bool = False) -> Tensor:
        """One row on the CPU, zero wherever `layers` has nothing. Safe on any thread."""
        row = torch.zeros(self.width, dtype=self._dtype, pin_memory=pinned)
        for path, vectors in layers.items():
            for name, place in self._places[path].items():
                value = vectors[name]
                if value.ndim == 1:  # the most frequent, at half the price
                    row[place.start : place.start + len(value)].copy_(value)
                    continue
                room = row[place.start : place.stop].view(place.shape)
                room[tuple(slice(size) for size in value.shape)].copy_(value)
        return row

    def views(self, rows: Tensor, path: str, rank: int) -> dict[str, Tensor]:
        """One layer's part of `rows` [n, at least width]: each vector as [n, *shape at rank]."""
        shapes = self._method.shapes(self._targets[path], rank)
        return {
            name: rows[:, place.start : place.stop].unflatten(1, place.shape)[
                (slice(None), *(slice(size) for size in shapes[name]))
            ]
            for name, place in self._places[path].items()
        }


class Bank:
    """Rows of device memory: slot 0 is zeros, the base model; 1 to `slots` are adapters'.

    All methods share the memory: a row is read only through the layout of the method that wrote it.
    A slot that was never written holds whatever the memory held; it is written before it is read.
    Only the engine's thread touches a bank.
    """

    def __init__(
        self, layouts: Mapping[str, RowLayout], slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._layouts = layouts
        width = max(layout.width for layout in layouts.values())
        self._rows = torch.empty(slots + 1, width, dtype=dtype, device=device)
        self._rows[BASE_SLOT].zero_()
        self._views: dict[tuple[str, str, int], dict[str, Tensor]] = {}

    @property
    def row_bytes(self) -> int:
        """Memory of one slot."""
        return self._rows.shape[1] * self._rows.itemsize

    def write(self, slot: int, row: Tensor) -> None:
        """Replace a slot's row. On CUDA the copy is queued behind the steps that read the old."""
        if slot == BASE_SLOT:
            raise ValueError("slot 0 is the base model's and stays zero")
        self._rows[slot, : len(row)].copy_(row, non_blocking=True)

    def layer(self, method: str, path: str, rank: int) -> dict[str, Tensor]:
        """One layer's vectors [slots + 1, *shape at rank]: views."""
        views = self._views.get((method, path, rank))
        if views is None:
            views = self._layouts[method].views(self._rows, path, rank)
            self._views[method, path, rank] = views
        return views


class BankRows:
    """`server.adapters.method.Rows` over a bank: gathered when first read.

    `keep` holds what was gathered for later steps with the same slots; otherwise it lives only as
    long as its layer runs.
    """

    __slots__ = ("_keep", "_kept", "_stored", "slots")

    def __init__(self, stored: Mapping[str, Tensor], slots: Tensor, *, keep: bool) -> None:
        self.slots = slots
        self._stored = stored
        self._keep = keep
        self._kept: dict[str, Tensor] = {}

    def stored(self, name: str) -> Tensor:
        return self._stored[name]

    def per_token(self, name: str) -> Tensor:
        gathered = self._kept.get(name)
        if gathered is None:
            gathered = self._stored[name].index_select(0, self.slots)
            if self._keep:
                self._kept[name] = gathered
        return gathered
