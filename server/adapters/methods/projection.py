"""Computes `A x` once for all linears that read the same `x`: q, k, v; gate, up.

Knows no method.
"""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from server.adapters.methods.method import BasisPair, BasisPairs


class Projection:
    """The product of a step's tokens by the leading columns of `a` [rank, widest].

    `shared`: keep the last product for the next linear with the same `x`. Others keep nothing, for
    they would keep a whole step's activations.
    """

    def __init__(self, a: Tensor, dropout: float, *, shared: bool) -> None:
        self._a = a
        self._dropout = dropout
        self._shared = shared
        self._by_width: dict[int, Tensor] = {}
        self._x: Tensor | None = None  # kept, so that no other tensor can take its identity
        self._product = a

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """x: as the model passed it, rows: the same as [tokens, in]. Returns [tokens, rank]."""
        if not self._shared:
            return self._compute(rows)
        if x is not self._x:
            self._x, self._product = x, self._compute(rows)
        return self._product

    def _compute(self, rows: Tensor) -> Tensor:
        width = rows.shape[1]
        at = self._by_width.get(width)
        if at is None:
            at = self._by_width[width] = self._a[:, :width].t()
        return torch.mm(dropped(rows, self._dropout), at)


def projections(
    paths: Iterable[str], bases: BasisPairs, rank: int, dropout: float
) -> dict[str, Projection]:
    """The projection of each linear by path: one object for those that read the same pair."""
    pairs = {path: bases[path] for path in paths}
    users: Counter[BasisPair] = Counter(pairs.values())
    by_pair = {
        pair: Projection(pair.a[:rank], dropout, shared=count > 1) for pair, count in users.items()
    }
    return {path: by_pair[pair] for path, pair in pairs.items()}


def dropped(rows: Tensor, dropout: float) -> Tensor:
    """`rows` as an adapter sees them: thinned out while gradients are recorded."""
    if dropout and torch.is_grad_enabled():
        return thinned(rows, dropout)
    return rows


def thinned(rows: Tensor, dropout: float) -> Tensor:
    """Dropout whose mask follows from the state of torch's generator on the CPU.

    Never from the device's: while a thread of this process captures a graph it belongs to that.
    """
    if rows.device.type == "cpu":
        return functional.dropout(rows, dropout)
    generator = torch.Generator(rows.device)
    generator.manual_seed(int(torch.randint(2**62, ())))
    mask = torch.empty_like(rows).bernoulli_(1 - dropout, generator=generator)
    return rows * mask.div_(1 - dropout)
