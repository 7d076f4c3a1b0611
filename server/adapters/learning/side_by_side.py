"""Trains several adapters in one batch, each over neighbouring rows of its own.

Knows no data, loss or optimizer. The base's products, which are most of the work, serve all rows at
once. What an adapter adds is computed from its own rows, by the deltas that would train it alone.
So nothing of one adapter can reach another.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from server.adapters.methods.method import Delta

Share = tuple[Mapping[str, Delta], int]
"""An adapter's deltas by module path, and how many tokens of the batch are its own."""


def side_by_side(shares: Sequence[Share]) -> dict[str, Delta]:
    """The deltas of a batch whose tokens lie in the order of `shares`."""
    if len(shares) == 1:
        return dict(shares[0][0])
    split = _Split([tokens for _, tokens in shares])
    paths = {path for deltas, _ in shares for path in deltas}
    return {path: _Joined(split, [deltas.get(path) for deltas, _ in shares]) for path in paths}


class _Split:
    """The parts of an input; the same objects for all layers that read the same input."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self._x: Tensor | None = None  # kept, so that no other tensor can take its identity
        self._parts: tuple[Tensor, ...] = ()

    def of(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        if x is not self._x:
            self._x, self._parts = x, rows.split(self.tokens)
        return self._parts


class _Joined:
    """One delta for each part of a batch; None leaves its part as it is."""

    def __init__(self, split: _Split, deltas: Sequence[Delta | None]) -> None:
        self._split = split
        self._deltas = deltas

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        parts = zip(self._deltas, self._split.of(x, rows), y.split(self._split.tokens), strict=True)
        return torch.cat(
            [own_y if delta is None else delta(part, part, own_y) for delta, part, own_y in parts]
        )
