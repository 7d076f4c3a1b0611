"""Scales rows of a batch by vectors of several adapters in training, each with rows of its own.

An adapter's rows are neighbours, and its vector scales those rows only. On CUDA that is a kernel,
whose plain reference is `reference_scaled`. Knows no method.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

KERNELS_FROM: Final = 1 << 23
"""Entries of a pass's [tokens, hidden] from which training's kernels are worth their launches.

On an H200 beside a slow host, one job of 1,024 tokens a step at the 1B shape took 58.6 ms a step
with kernels throughout, of which 9.5 ms on the device. With 32,768 tokens a step the device was
busy for 266 ms of 293.
"""


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
        return sent(torch.tensor([0, *accumulate(self.tokens)], dtype=torch.int32), self._device)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` of the CPU on a device, where nobody waits for it: a copy from ordinary memory to CUDA
    would wait for all that the stream has yet to do."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


def scaled(x: Tensor, vectors: Tensor, shares: Shares | None, onto: Tensor | None = None) -> Tensor:
    """x[t] * vectors[share of t], plus `onto`. Differentiable.

    Args:
        x: [tokens, n].
        vectors: [shares, n], any row stride; [n] where `shares` is None: one adapter has all rows.
        onto: [tokens, n].
    """
    if not x.is_cuda or (shares is None and x.numel() < KERNELS_FROM):
        return reference_scaled(x, vectors, shares, onto)
    from server.kernels.scaled_rows import scaled_rows  # a CPU has no triton

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
        many = x.view(len(shares.tokens), -1, x.shape[1])
        return (many * vectors[:, None]).view(x.shape)
    parts = zip(x.split(shares.tokens), vectors.unbind(), strict=True)
    return torch.cat([part * vector for part, vector in parts])
