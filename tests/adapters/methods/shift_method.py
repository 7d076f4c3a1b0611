"""A method that no part of the server knows: each output is shifted by the input's mean.

y = W x + s * mean(x)        s: [out]
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from server.adapters.methods.basis_id import NO_BASIS, BasisId
from server.adapters.methods.method import (
    BasisPairs,
    BasisSize,
    Delta,
    Layers,
    Matrices,
    Method,
    Rows,
    Vectors,
)
from server.adapters.methods.method_kind import MethodKind
from server.bases.model import TargetLinear
from server.jobs.queue.method_spec import MethodSpec, Variant


@dataclass(frozen=True)
class Shift(Method):
    name: ClassVar[str] = "shift"

    @property
    def options(self) -> dict[str, str]:
        return {}

    def basis(self, seed: int) -> BasisId:
        return BasisId(NO_BASIS)

    def shapes(self, linear: TargetLinear, rank: int) -> dict[str, tuple[int, ...]]:
        return {"s": (linear.out_features,)}

    def padded_rank(self, rank: int, max_rank: int) -> int:
        return 1

    def basis_size(self, linear: TargetLinear, rank: int) -> BasisSize:
        return BasisSize(0, 0)

    def initial(self, linear: TargetLinear, rank: int, start: Matrices) -> dict[str, Tensor]:
        return {"s": torch.zeros(linear.out_features)}

    def fold(
        self, linear: TargetLinear, rank: int, vectors: Vectors, scale: float
    ) -> dict[str, Tensor]:
        return {"s": vectors["s"] * scale}

    def deltas(
        self, layers: Layers, rank: int, bases: BasisPairs, dropout: float = 0.0
    ) -> dict[str, Delta]:
        return {path: _ShiftDelta(rows) for path, (_, rows) in layers.items()}

    def dense(
        self, linear: TargetLinear, rank: int, matrices: Matrices, vectors: Vectors, scale: float
    ) -> Tensor:
        s = vectors["s"].double()
        return scale * s[:, None].expand(-1, linear.in_features) / linear.in_features


class _ShiftDelta:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        return y + self._rows.per_token("s") * rows.mean(1, keepdim=True)


SHIFT = MethodKind(
    MethodSpec("shift", (Variant(None, 1, 1e-2, "nobody", alpha_per_rank=2.0),)),
    lambda options: Shift(),
)
