"""The frozen side of one RandLoRA layer: A, B, and which column of B meets what.

Knows neither tokens nor gradients. Shapes below: n blocks, `rank`, `narrow` = min(in, out),
`wide` = max(in, out).
"""

from dataclasses import dataclass

from torch import Tensor

from server.adapters.methods.method import BasisPair
from server.bases.model import TargetLinear


def block_count(linear: TargetLinear, rank: int) -> int:
    """n, the fewest blocks of `rank` that can sum to full rank."""
    return -(-min(linear.in_features, linear.out_features) // rank)


@dataclass(frozen=True, eq=False)
class Frozen:
    """Views of a shared pair: `a` [rank, narrow] and `bt` [n * rank, wide].

    `rises`: in <= out, so that x meets A first and B second; else the other way round, transposed.

    `by_rank`: PEFT's pairing. Column c of B belongs to block j and row k of A, and natively
    c = j * rank + k; PEFT flattens its scaled A by row first, so that c = k * n + j. The same
    n * rank pairs of (j, k) in another order: what comes out of A, or goes into it, is transposed
    between [n, rank] and [rank, n], and B is read as it lies. Exact, for a sum over c does not care
    which way c was numbered.
    """

    a: Tensor
    bt: Tensor
    rises: bool
    by_rank: bool

    @classmethod
    def of(cls, linear: TargetLinear, rank: int, pair: BasisPair, *, by_rank: bool) -> "Frozen":
        narrow, wide = sorted((linear.in_features, linear.out_features))
        return cls(
            a=pair.a[:rank, :narrow],
            bt=pair.bt[: block_count(linear, rank) * rank, :wide],
            rises=linear.in_features <= linear.out_features,
            by_rank=by_rank,
        )

    def scaled_a(self, lambda_: Tensor, gamma: Tensor) -> Tensor:
        """Row c is `lambda[j, k] * a[k] * gamma[j]`: [n * rank, narrow], as large as the weight."""
        if self.by_rank:
            scaled = (lambda_.t()[:, :, None] * gamma).mul_(self.a[:, None])
        else:
            scaled = (lambda_[:, :, None] * self.a).mul_(gamma[:, None])
        return scaled.flatten(0, 1)

    def update(self, lambda_: Tensor, gamma: Tensor) -> Tensor:
        """What is added to the weight, [out, in]."""
        scaled = self.scaled_a(lambda_, gamma)
        return self.bt.t() @ scaled if self.rises else scaled.t() @ self.bt

    def to_columns(self, by_block: Tensor) -> Tensor:
        """[tokens, n, rank] as B's columns: [tokens, n * rank]."""
        return (by_block.transpose(1, 2) if self.by_rank else by_block).flatten(1)

    def to_blocks(self, columns: Tensor, dim: int) -> Tensor:
        """The dimension of B's columns split in two, n and rank: a view."""
        rank, shape = len(self.a), columns.shape
        split = (rank, -1) if self.by_rank else (-1, rank)
        blocks = columns.view(*shape[:dim], *split, *shape[dim + 1 :])
        return blocks.transpose(dim, dim + 1) if self.by_rank else blocks
