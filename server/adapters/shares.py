"""Rows that several learning adapters share out among themselves: each adapter's lie side by side.

A vector of an adapter then scales its own rows only. On CUDA that is a kernel, whose plain
reference is `reference_scaled`. Knows no method.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


class Shares:
    """How many neighbouring rows of a batch each adapter has, in order; none has 0."""

    def __init__(self, tokens: Sequence[int], device: torch.device) -> None:
        self.tokens = tuple(tokens)
        self._device = device

    @property
    def most(self) -> int:
        return max(self.tokens)

    @cached_property
    def starts(self) -> Tensor:
        """Each share's first row, and the end of the last: int32 [shares + 1] on the device."""
        starts = torch.tensor([0, *accumulate(self.tokens)], dtype=torch.int32)
        return starts.to(self._device, non_blocking=True)


def scaled(x: Tensor, vectors: Tensor, shares: Shares | None, onto: Tensor | None = None) -> Tensor:
    """x[t] * vectors[share of t], plus `onto`. Differentiable.

    Args:
        x: [tokens, n].
        vectors: [shares, n], any row stride; [n] where `shares` is None: one adapter has all rows.
        onto: [tokens, n].
    """
    if not x.is_cuda:
        return reference_scaled(x, vectors, shares, onto)
    from server.adapters.kernels.scaled_rows import scaled_rows  # a CPU has no triton

    if shares is None:
        return scaled_rows(x, vectors, onto, None, len(x))
    return scaled_rows(x, vectors, onto, shares.starts, shares.most)


def reference_scaled(
    x: Tensor, vectors: Tensor, shares: Shares | None, onto: Tensor | None = None
) -> Tensor:
    """What `scaled` does, written plainly."""
    product = x * vectors if shares is None else _by_share(x, vectors, shares)
    return product if onto is None else onto + product


def _by_share(x: Tensor, vectors: Tensor, shares: Shares) -> Tensor:
    # Never through zeros for the others: 0 * nan is nan, and one adapter's must stay its own.
    if len(set(shares.tokens)) == 1:
        many = x.unflatten(0, (len(shares.tokens), -1))
        return (many * vectors[:, None]).flatten(0, 1)
    parts = zip(x.split(shares.tokens), vectors.unbind(), strict=True)
    return torch.cat([part * vector for part, vector in parts])
