"""The vectors of adapters in training: one flat parameter each, in the form that deltas read.

Adapters of one kind that learn together are stacked once for all their layers, so a batch of many
costs the launches of one. Knows no data, loss or optimizer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from server.adapters.methods.method import Method, Run, Shapes, Vectors
from server.adapters.methods.row_shares import Shares
from server.bases.model import TargetLinear


class FlatLayout:
    """Where each vector of each layer lies in an adapter's flat parameter, and in what unit.

    Args:
        linears: the adapted ones by path.
    """

    def __init__(self, method: Method, linears: Mapping[str, TargetLinear], rank: int) -> None:
        self.method = method
        self.rank = rank
        self.linears = linears
        self.shapes: dict[str, Shapes] = {
            path: method.shapes(linear, rank) for path, linear in linears.items()
        }
        self.sizes = [
            math.prod(shape) for shapes in self.shapes.values() for shape in shapes.values()
        ]
        self._units = {path: method.unit(linear, rank) for path, linear in linears.items()}

    @cached_property
    def units(self) -> Tensor:
        """Float32 [size]: powers of two, which an entry as stored is that many times as large."""
        units = [self._units[path][name] for path, shapes in self.shapes.items() for name in shapes]
        return torch.tensor(units).repeat_interleave(torch.tensor(self.sizes))

    def joined(self, stored: Mapping[str, Vectors]) -> Tensor:
        """Vectors as stored, as one flat parameter: float32 [size] on the CPU."""
        flat = [
            stored[path][name].reshape(-1).float().cpu()
            for path, shapes in self.shapes.items()
            for name in shapes
        ]
        return torch.cat(flat) / self.units

    def parts(self, flat: Tensor) -> dict[str, dict[str, Tensor]]:
        """Views of [..., size] by path and name, each [..., *shape]."""
        pieces = iter(flat.split(self.sizes, dim=-1))
        return {
            path: {
                name: next(pieces) if len(shape) == 1 else next(pieces).unflatten(-1, shape)
                for name, shape in shapes.items()
            }
            for path, shapes in self.shapes.items()
        }


@dataclass(eq=False)
class TrainedVectors:
    """The vectors of some adapters of one layout, folded once for all that reads them.

    Nothing of it is freed by a backward pass, so several passes may share it.

    Args:
        flats: a parameter for each adapter.
        units: the layout's, on their device.
        shares: the rows that are each adapter's; None: there is one, and all rows are its own.
    """

    _layout: FlatLayout
    _flats: Sequence[nn.Parameter]
    _units: Tensor
    _scale: float
    _dtype: torch.dtype
    shares: Shares | None

    @cached_property
    def folded(self) -> dict[str, dict[str, Tensor]]:
        """By path and name, differentiable: [*shape], or [shares, *shape] of several adapters."""
        layout, scale = self._layout, self._scale
        # A scale is folded in before numbers are rounded; without one, all are cast at once.
        dtype = self._dtype if scale == 1 else torch.float32
        flat: Tensor = _Flat.apply(self._units, dtype, *self._flats)  # type: ignore[no-untyped-call]
        parts = layout.parts(flat[0] if self.shares is None else flat)
        return {
            path: {
                name: vector.to(self._dtype)
                for name, vector in layout.method.fold(
                    layout.linears[path], layout.rank, vectors, scale
                ).items()
            }
            for path, vectors in parts.items()
        }


class _Flat(torch.autograd.Function):
    """Parameters to vectors as stored, [adapters, size]."""

    @staticmethod
    def forward(ctx: Any, units: Tensor, dtype: torch.dtype, *flats: Tensor) -> Tensor:
        ctx.units = units
        return (torch.stack(flats) * units).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(g * ctx.units).unbind()


class TrainedRows:
    """`server.adapters.methods.method.Rows` of one layer in training."""

    rows: Tensor | None = None
    runs: tuple[Run, ...] = ()

    def __init__(self, vectors: TrainedVectors, path: str) -> None:
        self._vectors = vectors
        self._path = path

    @property
    def shares(self) -> Shares | None:
        return self._vectors.shares

    def stored(self, name: str) -> Tensor:
        return self._vectors.folded[self._path][name]

    def per_token(self, name: str) -> Tensor:
        return self.stored(name)
