"""VeRA's product, `y + b * ((d * (A x)) Bt)`: in a mixed batch, and in training.

Knows no variants. `server.adapters.kernels.vera_product_kernel` is the same on CUDA, in one kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from server.adapters.methods.method import BasisPairs, Delta, Layers, Rows
from server.adapters.methods.projection import Projection, projections
from server.adapters.methods.row_shares import scaled


def vera_deltas(layers: Layers, rank: int, bases: BasisPairs, dropout: float) -> dict[str, Delta]:
    """See `server.adapters.methods.method.Method.deltas`."""
    project = projections(layers, bases, rank, dropout)
    deltas: dict[str, Delta] = {}
    for path, (linear, rows) in layers.items():
        bt = bases[path].bt[:rank, : linear.out_features]
        kind = _TrainedDelta if rows.rows is None else _ServedDelta
        deltas[path] = kind(project[path], bt, rows)
    return deltas


@dataclass(slots=True, eq=False)
class _ServedDelta:
    """x: [tokens, in], y: [tokens, out]; y += b * ((d * (A x)) Bt)."""

    _project: Projection
    _bt: Tensor
    _rows: Rows

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        z = self._project(x, rows) * self._rows.per_token("d")
        return y.addcmul_(self._rows.per_token("b"), torch.mm(z, self._bt))


class _TrainedDelta(_ServedDelta):
    """The same in training, where each adapter may have a share of the rows."""

    __slots__ = ()

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        shares = self._rows.shares
        z = scaled(self._project(x, rows), self._rows.stored("d"), shares)
        return scaled(torch.mm(z, self._bt), self._rows.stored("b"), shares, onto=y)
