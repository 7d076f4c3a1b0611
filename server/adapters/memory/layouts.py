"""Lays out an adapter's vectors in a row of device memory: all layers one after the other.

Knows no adapter and no method beyond its shapes. One row per adapter, rather than one tensor per
layer and vector, makes loading a single copy whatever the model's depth.
"""

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from server.adapters.methods.method import Method, Vectors
from server.bases.model import BaseModel, TargetLinear

_ALIGNMENT = 16  # entries: 32 or 64 bytes, so that every layer starts on a vector load
PAGE: Final = 256
"""Entries of one page of device memory: every row starts on one."""


@dataclass(frozen=True)
class Place:
    """Where a vector lies in a row, and its shape there, padding included."""

    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


class RowLayout:
    """The place of every layer's vectors, at one padded rank, in a row of `width` entries.

    They follow each other as in a file, so that much of it is copied in one piece.
    """

    def __init__(
        self,
        method: Method,
        targets: Mapping[str, TargetLinear],
        padded_rank: int,
        dtype: torch.dtype,
    ) -> None:
        self.padded_rank = padded_rank
        self.targets = frozenset(targets)
        self._method = method
        self._linears = targets
        self._dtype = dtype
        self._places: dict[str, dict[str, Place]] = {}
        end = 0
        for path, linear in sorted(targets.items()):
            self._places[path] = {}
            for name, shape in sorted(method.padded_shapes(linear, padded_rank).items()):
                place = Place(end, tuple(shape))
                self._places[path][name] = place
                end = -(-place.stop // _ALIGNMENT) * _ALIGNMENT
        self.width = end

    @property
    def row_bytes(self) -> int:
        return self.width * self._dtype.itemsize

    @property
    def pages(self) -> int:
        """Pages that a row takes."""
        return -(-self.width // PAGE)

    def starts(self, path: str) -> dict[str, int]:
        """The entry of a row from which each vector of one linear lies."""
        return {name: place.start for name, place in self._places[path].items()}

    def place(self, path: str, name: str) -> Place:
        """Where one vector of one linear lies."""
        return self._places[path][name]

    def new_row(self, *, pinned: bool = False) -> Tensor:
        """A row of zeros on the CPU."""
        return torch.zeros(self.width, dtype=self._dtype, pin_memory=pinned)

    def pack(self, layers: Mapping[str, Vectors], *, pinned: bool = False) -> Tensor:
        """One row on the CPU, zero wherever `layers` has nothing. Safe on any thread."""
        row = self.new_row(pinned=pinned)
        destinations: list[Tensor] = []
        values: list[Tensor] = []
        for path, vectors in layers.items():
            for name, place in self._places[path].items():
                value = vectors[name]
                values.append(value)
                if value.ndim == 1:  # the most frequent, at half the price
                    destinations.append(row[place.start : place.start + len(value)])
                    continue
                padded = row[place.start : place.stop].view(place.shape)
                destinations.append(padded[tuple(slice(size) for size in value.shape)])
        if destinations:
            torch._foreach_copy_(destinations, values)  # hundreds of copies in one call
        return row

    def views(self, memory: Tensor, pages: int, path: str, rank: int) -> dict[str, Tensor]:
        """One layer's vectors as if a row began on each of the first `pages` pages of `memory`.

        Returns: each vector as [pages, *shape at rank]; rows overlap, so never write through them.
        """
        shapes = self._method.padded_shapes(self._linears[path], rank)
        return {
            name: memory.as_strided(
                (pages, *shapes[name]), (PAGE, *_strides(place.shape)), place.start
            )
            for name, place in self._places[path].items()
        }


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class Layouts:
    """The layouts in use, one object for each kind, so that equal ones are the same. Thread-safe.

    Args:
        max_rank: the largest rank served.
    """

    def __init__(self, base: BaseModel, max_rank: int) -> None:
        self._base = base
        self._max_rank = max_rank
        self._layouts: WeakValueDictionary[tuple[object, ...], RowLayout] = WeakValueDictionary()
        self._lock = threading.Lock()

    def of(self, method: Method, rank: int, targets: Iterable[str]) -> RowLayout:
        """The layout in which adapters like this one lie."""
        padded_rank = method.padded_rank(rank, self._max_rank)
        paths = frozenset(self._base.targets if method.whole_batch else targets)
        any_linear = next(iter(self._base.targets.values()))
        # Variants of one method may lie alike (VeRA's), or not (which half of LoRA is trained).
        vectors = frozenset(method.padded_shapes(any_linear, padded_rank))
        key = (method.name, vectors, padded_rank, paths)
        with self._lock:
            layout = self._layouts.get(key)
            if layout is None:
                linears = {p: linear for p, linear in self._base.targets.items() if p in paths}
                layout = RowLayout(method, linears, padded_rank, self._base.dtype)
                self._layouts[key] = layout
            return layout
