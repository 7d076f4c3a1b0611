"""Judges whether the update of an adapter overflows, though each of its numbers is finite.

Knows no files and no device. Nothing is multiplied out: a bound is enough, and takes no time.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from server.adapters.methods.method import Factors, Matrices, Method
from server.bases.model import BaseModel
from server.errors import AdapterNotFinite

LARGEST_UPDATE: Final = math.sqrt(torch.finfo(torch.float32).max)
"""What follows a linear squares its output in float32, in every model with norms. Real updates are
below 100."""


def check_update(
    method: Method,
    base: BaseModel,
    targets: tuple[str, ...],
    rank: int,
    scale: float,
    tensors: Mapping[str, Tensor],
    matrices: Callable[[str], Matrices],
    largest_product: float = 1.0,
) -> None:
    """Refuse vectors that overflow once the scale is folded in, and updates that do.

    Args:
        matrices: those that the linear at a path reads.
        largest_product: of an entry of A and one of B.

    Raises:
        AdapterNotFinite: naming the layer.
    """
    most = torch.finfo(base.dtype).max
    for path in targets:
        linear = base.targets[path]
        vectors = {name: tensors[f"{path}.{name}"] for name in method.shapes(linear, rank)}
        folded = method.fold(linear, rank, vectors, scale)
        for name, vector in folded.items():
            if not torch.isfinite(vector.to(base.dtype)).all():
                raise AdapterNotFinite(
                    f"{name!r} of layer {path!r}, times the scale {scale}, is too large for "
                    f"{base.dtype}: serve with --dtype bfloat16 or float32, or train it again with "
                    "a lower learning rate"
                )
        terms = max(rank, method.basis_size(linear, rank).b_rank)
        sizes = (float(vector.abs().max()) for vector in folded.values())
        size = terms * largest_product * math.prod(sizes)
        if size > most and size <= LARGEST_UPDATE:  # a bound: near it, look at the update itself
            factors = method.factors(linear, rank, matrices(path), vectors, scale)
            size = 0.0 if factors is None else _largest_seen(factors)
        if not size <= min(most, LARGEST_UPDATE):
            raise AdapterNotFinite(
                f"the update of layer {path!r} overflows: its numbers, multiplied with each other "
                f"and the scale {scale:g}, reach {size:.3g}. Train it again with a lower learning "
                "rate or alpha"
            )


def _largest_seen(factors: Factors) -> float:
    """The largest entry of B A in the row and in the column where it is likely."""
    b, a = factors
    row = b[b.norm(dim=1).argmax()] @ a
    column = b @ a[:, a.norm(dim=0).argmax()]
    return float(torch.cat((row, column)).abs().max())
