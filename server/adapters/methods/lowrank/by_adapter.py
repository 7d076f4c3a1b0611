"""Multiplies tokens by matrices of their own adapters. Knows no method.

An adapter with many tokens in the step gets a product of its own, over neighbouring rows, which
reads its matrix where it lies. The matrices of all others are gathered, one copy a token, for one
batched product. So a popular adapter costs less per token, however its tokens are scattered.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from server.adapters.methods.method import Rows, Run

OWN_PRODUCT_TOKENS: Final = {"cpu": 1, "cuda": 256}
"""The tokens of a step from which an adapter of rank 8 gets a product of its own, by device.

`python -m benchmarks.kernels.lora_crossover`, one core of an EPYC, own over gathered, for 16
adapters of rank 8:

    tokens of each        1      2      4      8      16     32
    float32, 384 wide     1.05   0.63   0.32   0.27   0.10   0.12
    float32, 2048 wide    0.29   0.22   0.05   0.04   0.06   0.03
    bfloat16, 384 wide    2.3    5.7    3.6    1.6    1.4    0.39
    bfloat16, 2048 wide   3.3    2.1    1.05   0.82   0.33   0.21

A CPU serves float32 by default. The same on an NVIDIA H200, torch 2.11.0, in
microseconds for A and B together, bfloat16, 2048 wide, gathered and own:

    tokens of each        1             8             32
    4 adapters            54, 126       60, 151       66, 147
    16 adapters           55, 464       67, 503       89, 512
    64 adapters           65, 2664      93, 2019

There own products are launches, 31 us a pair whatever they multiply, and gathering 512 tokens takes
40 us more than gathering few, 2.6 ps an entry. By that they cross near 370 tokens, beyond what was
measured; 256 leaves room for wider layers. What is gathered grows with the rank, launches do not.
"""

GATHERED_ENTRIES: Final = 1 << 24
"""Entries of the matrices gathered at a time: 32 MiB in half precision."""


def own_product_tokens(rank: int, device: torch.device) -> int:
    """`OWN_PRODUCT_TOKENS` at another rank."""
    return max(1, OWN_PRODUCT_TOKENS[device.type] * 8 // rank)


class ByAdapter:
    """One step's tokens in an order that brings those of each popular adapter together, first.

    Args:
        rows: the stored row of each token, int64 [tokens].
        runs: the same; see `server.adapters.methods.method.Rows`.
        least_tokens: the tokens from which an adapter gets a product of its own.
    """

    def __init__(self, rows: Tensor, runs: Sequence[Run], least_tokens: int) -> None:
        count: Counter[int] = Counter()
        for run in runs:
            count[run.row] += run.stop - run.start
        popular = [row for row, tokens in count.items() if tokens >= least_tokens]
        self._runs = _lined_up(popular, count)
        self._gathered_from = self._runs[-1].stop if self._runs else 0
        order = _order([*popular, None], runs)
        if order == list(range(len(order))):
            self._order = self._inverse = None
        else:
            self._order = torch.tensor(order, device=rows.device)
            self._inverse = torch.argsort(self._order)
        self._rows = self.sort(rows)

    def sort(self, x: Tensor) -> Tensor:
        """`x` [tokens, ...] in this order."""
        return x if self._order is None else x.index_select(0, self._order)

    def unsort(self, x: Tensor) -> Tensor:
        """The inverse of `sort`."""
        return x if self._inverse is None else x.index_select(0, self._inverse)

    def product(self, x: Tensor, rows: Rows, name: str) -> Tensor:
        """`M[t] x[t]` for the matrix M [m, n] called `name`; x: [tokens, n] and the result sorted.

        Records no gradients.
        """
        stored = rows.stored(name)
        product = x.new_empty(len(x), stored.shape[1])
        for run in self._runs:
            span = slice(run.start, run.stop)
            torch.mm(x[span], stored[run.row].t(), out=product[span])
        at_once = max(1, GATHERED_ENTRIES // stored[0].numel())
        if self._gathered_from == 0 and len(x) <= at_once:
            # No token was moved, and what the rows gather may be kept for the next step.
            torch.bmm(rows.per_token(name), x.unsqueeze(2), out=product.unsqueeze(2))
            return product
        for start in range(self._gathered_from, len(x), at_once):
            span = slice(start, start + at_once)
            gathered = stored.index_select(0, self._rows[span])
            torch.bmm(gathered, x[span].unsqueeze(2), out=product[span].unsqueeze(2))
        return product


def _lined_up(popular: Sequence[int], count: Counter[int]) -> list[Run]:
    """The popular adapters' runs once their tokens stand first, side by side."""
    runs: list[Run] = []
    for row in popular:
        start = runs[-1].stop if runs else 0
        runs.append(Run(row, start, start + count[row]))
    return runs


def _order(places: Sequence[int | None], runs: Sequence[Run]) -> list[int]:
    """The tokens of `runs` by the place of their adapter, those without one at None."""
    tokens: dict[int | None, list[int]] = {place: [] for place in places}
    for run in runs:
        place = run.row if run.row in tokens else None
        tokens[place] += range(run.start, run.stop)
    return [token for place in places for token in tokens[place]]
