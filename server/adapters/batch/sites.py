"""Joins linears that read the same input to one product over one weight: a site.

Knows no step and no slots. Rows of a random A may ride at the end of the weight. The product then
gives `A x` after the linears' outputs, for the price of its bytes and without another launch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.adapters.methods.basis_id import BasisId
from server.bases.model import TargetLinear


@dataclass(frozen=True, eq=False)
class Riding:
    """The leading `rank` rows of a basis' A, [rank, widest], which ride in every site."""

    basis: BasisId
    a: Tensor

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True, eq=False)
class Site:
    """One product: `x` [tokens, in] by `weight` [width, in], and by the rows that ride behind it.

    `columns` says where each linear's output lies in the product's, by module path.
    """

    columns: Mapping[str, slice]
    width: int
    weight: Tensor
    bias: Tensor | None
    riding: Riding | None

    def product(self, x: Tensor, *, ride: bool) -> Tensor:
        """[tokens, width], or with `ride` [tokens, width + rank]: the last columns are `A x`."""
        stop = len(self.weight) if ride else self.width
        bias = None if self.bias is None else self.bias[:stop]
        return functional.linear(x, self.weight[:stop], bias)


def join(linears: Sequence[TargetLinear], riding: Riding | None) -> Site:
    """Put the weights of `linears` (all `nn.Linear`) side by side in one tensor.

    The modules keep their weights as views of it, so that none is in memory twice.
    """
    modules = [_linear(target) for target in linears]
    width = sum(target.out_features for target in linears)
    rows = width + (riding.rank if riding else 0)
    first = modules[0].weight
    weight = first.new_empty(rows, first.shape[1])
    biased = any(module.bias is not None for module in modules)
    bias = first.new_zeros(rows) if biased else None
    columns: dict[str, slice] = {}
    start = 0
    with torch.no_grad():
        for target, module in zip(linears, modules, strict=True):
            span = slice(start, start + target.out_features)
            columns[target.path] = span
            weight[span] = module.weight
            module.weight.data = weight[span]
            if bias is not None and module.bias is not None:
                bias[span] = module.bias
                module.bias.data = bias[span]
            start = span.stop
        if riding is not None:
            weight[width:] = riding.a[:, : weight.shape[1]]
    return Site(columns, width, weight, bias, riding)


def _linear(target: TargetLinear) -> nn.Linear:
    if not isinstance(target.module, nn.Linear):
        raise TypeError(f"{target.path} is a {type(target.module).__name__}, not a Linear")
    return target.module
