"""A stored adapter that passed all checks for its base, for analyses and exports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters_store.manifest import Manifest
from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.method import Factors, Matrices, Method
from server.bases.model import BaseModel, TargetLinear


@dataclass(frozen=True, eq=False)
class CheckedAdapter:
    """Its header and vectors. `matrices` makes A and B of the linear at a path, on demand."""

    base: BaseModel
    method: Method
    manifest: Manifest
    tensors: Mapping[str, Tensor]
    matrices: Callable[[str], Matrices]

    @property
    def basis(self) -> BasisId:
        return BasisId.of(self.manifest)

    @property
    def linears(self) -> list[TargetLinear]:
        return [self.base.targets[path] for path in self.manifest.targets]

    @property
    def widest(self) -> tuple[int, int]:
        """The most in-features and the most out-features among its linears."""
        linears = self.linears
        return max(it.in_features for it in linears), max(it.out_features for it in linears)

    def vectors(self, linear: TargetLinear) -> dict[str, Tensor]:
        """A linear's vectors as stored."""
        names = self.method.shapes(linear, self.manifest.rank)
        return {name: self.tensors[f"{linear.path}.{name}"] for name in names}

    def folded(self, linear: TargetLinear) -> dict[str, Tensor]:
        """The same in float64 with the scale folded in, and with what is not stored."""
        exact = {name: vector.to(torch.float64) for name, vector in self.vectors(linear).items()}
        return self.method.fold(linear, self.manifest.rank, exact, self.manifest.scale)

    def update(self, linear: TargetLinear) -> Tensor:
        """What it adds to the weight, float64 [out, in]."""
        rank, matrices = self.manifest.rank, self.matrices(linear.path)
        return self.method.dense(linear, rank, matrices, self.vectors(linear), self.manifest.scale)

    def factors(self, linear: TargetLinear, scale: float | None = None) -> Factors | None:
        """See `Method.factors`, at another scale if one is given."""
        rank, matrices = self.manifest.rank, self.matrices(linear.path)
        scale = self.manifest.scale if scale is None else scale
        return self.method.factors(linear, rank, matrices, self.vectors(linear), scale)
