"""VeRA (Kopiczko et al., arXiv 2310.11454, equation 2): two trained vectors over frozen matrices.

    y = W x + b * (B (d * (A x)))        d: [rank], b: [out]

A and B are seeded and shared by every layer and adapter, so one product by each serves a batch of
any adapters; a row is its own only in `d` and `b`. Ranks nest: an adapter of a smaller rank reads
leading rows of A, and zeros in `d` silence the others.
"""

import math
from collections.abc import Hashable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from server.adapters.method import BasisPair, BasisSize, Delta, Rows, Vectors
from server.bases.model import TargetLinear
from server.bases.seeded import Basis

D_INITIAL: Final = 0.1


class Vera:
    """The method `vera`; see `server.adapters.method.Method`."""

    name: Final = "vera"

    def shapes(self, linear: TargetLinear, rank: int) -> dict[str, tuple[int, ...]]:
        return {"d": (rank,), "b": (linear.out_features,)}

    def room(self, linear: TargetLinear, max_rank: int) -> dict[str, tuple[int, ...]]:
        return self.shapes(linear, max_rank)

    def basis_size(self, rank: int) -> BasisSize:
        return BasisSize(rank, rank)

    def group(self, seed: int, rank: int) -> Hashable:
        return seed

    def initial(
        self, linear: TargetLinear, rank: int, options: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """`options` may give `d_initial`, the start of every entry of `d` (the paper's 0.1)."""
        d_initial = options.get("d_initial", D_INITIAL)
        return {"d": torch.full((rank,), d_initial), "b": torch.zeros(linear.out_features)}

    def unit(self, linear: TargetLinear, rank: int) -> dict[str, float]:
        """`b` is trained as if A and B had the paper's Kaiming spread.

        Kaiming's variances are 2/in and 2/rank where ours are 1/3, so B A is 6 / sqrt(in rank)
        times as large there: rounded to a power of two, which a float takes without rounding.
        """
        return {
            "d": 1.0,
            "b": 2.0 ** round(math.log2(6 / math.sqrt(linear.in_features * rank))),
        }

    def fold(self, vectors: Vectors, scale: float) -> dict[str, Tensor]:
        b = vectors["b"]
        return {"d": vectors["d"], "b": b if scale == 1 else b * scale}

    def deltas(
        self,
        layers: Mapping[str, tuple[TargetLinear, Rows]],
        rank: int,
        basis: BasisPair,
        dropout: float = 0.0,
    ) -> dict[str, Delta]:
        projection = _Projection(basis.a[:rank], dropout)
        return {
            path: _VeraDelta(projection, basis.bt[:rank, : linear.out_features], rows)
            for path, (linear, rows) in layers.items()
        }

    def dense(
        self, linear: TargetLinear, rank: int, basis: Basis, vectors: Vectors, scale: float
    ) -> Tensor:
        """`scale * diag(b) B diag(d) A`."""
        d, b = vectors["d"].double(), vectors["b"].double()
        wide = basis.b(linear.out_features, rank, torch.float64)
        narrow = basis.a(rank, linear.in_features, torch.float64)
        return scale * b[:, None] * (wide @ (d[:, None] * narrow))


class _Projection:
    """`A x`, made once for all layers that read the same `x`: q, k, v; gate, up."""

    def __init__(self, a: Tensor, dropout: float) -> None:
        self._a = a
        self._dropout = dropout
        self._by_width: dict[int, Tensor] = {}
        self._x: Tensor | None = None  # held, so that no other tensor can take its identity
        self._product = a

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        if x is not self._x:
            width = rows.shape[1]
            at = self._by_width.get(width)
            if at is None:
                at = self._by_width[width] = self._a[:, :width].t()
            if self._dropout and torch.is_grad_enabled():
                rows = functional.dropout(rows, self._dropout)
            self._x, self._product = x, torch.mm(rows, at)
        return self._product


class _VeraDelta:
    """x: [tokens, in], y: [tokens, out]; y += b * ((d * (A x)) Bt)."""

    __slots__ = ("_bt", "_project", "_rows")

    def __init__(self, project: _Projection, bt: Tensor, rows: Rows) -> None:
        self._project = project
        self._bt = bt
        self._rows = rows

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        z = self._project(x, rows) * self._rows.per_token("d")
        return y.addcmul_(self._rows.per_token("b"), torch.mm(z, self._bt))
