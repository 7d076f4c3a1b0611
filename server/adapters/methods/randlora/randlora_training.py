"""RandLoRA in training: a chain of products that keeps A's input, and nothing as large as A.

Knows no adapter and no slots. Left to autograd, a layer would keep its scaled A, which is as large
as its weight; arXiv 2502.00987, section C.5, keeps one A for the n scaled ones, and so does this.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from server.adapters.methods.method import Rows
from server.adapters.methods.projection import thinned
from server.adapters.methods.randlora.randlora_frozen import Frozen


class Dropped:
    """Dropout of `x`, drawn once for all layers that read the same `x`: q, k, v; gate, up."""

    def __init__(self, dropout: float) -> None:
        self._dropout = dropout
        self._x: Tensor | None = None  # kept, so that no other tensor can take its identity
        self._dropped: Tensor | None = None

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        if not self._dropout or not torch.is_grad_enabled():
            return rows
        if self._dropped is None or x is not self._x:
            self._x, self._dropped = x, thinned(rows, self._dropout)
        return self._dropped


@dataclass(slots=True, eq=False)
class TrainedDelta:
    """x: [tokens, in], y: [tokens, out]; y + update(lambda, gamma) x."""

    _frozen: Frozen
    _rows: Rows
    _dropped: Dropped

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        lambda_, gamma = self._rows.stored("lambda"), self._rows.stored("gamma")
        return y + _update(self._dropped(x, rows), lambda_, gamma, self._frozen)


def _update(x: Tensor, lambda_: Tensor, gamma: Tensor, frozen: Frozen) -> Tensor:
    delta: Tensor = _Update.apply(x, lambda_, gamma, frozen)  # type: ignore[no-untyped-call]
    return delta


class _Update(torch.autograd.Function):
    """With S the scaled A [n * rank, narrow]: x S' B' where in <= out, else x B S.

    Keeps what met S: x, or x B, which is narrower than x and a product less to repeat.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, lambda_: Tensor, gamma: Tensor, frozen: Frozen) -> Tensor:
        ctx.frozen = frozen
        operand = x if frozen.rises else x @ frozen.bt.t()
        ctx.save_for_backward(operand, lambda_, gamma)
        scaled = frozen.scaled_a(lambda_, gamma)
        return operand @ scaled.t() @ frozen.bt if frozen.rises else operand @ scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        operand, lambda_, gamma = ctx.saved_tensors
        frozen: Frozen = ctx.frozen
        g_columns = gy @ frozen.bt.t() if frozen.rises else None
        g_scaled = operand.t() @ gy if g_columns is None else g_columns.t() @ operand
        # S[j, k] = lambda[j, k] * a[k] * gamma[j], so both gradients are sums of g_S * a.
        products = frozen.to_blocks(g_scaled, 0) * frozen.a
        g_lambda = torch.bmm(products, gamma[:, :, None]).squeeze(2)
        g_gamma = torch.bmm(lambda_[:, None], products).squeeze(1)
        if not ctx.needs_input_grad[0]:
            return None, g_lambda, g_gamma, None
        scaled = frozen.scaled_a(lambda_, gamma)
        gx = gy @ scaled.t() @ frozen.bt if g_columns is None else g_columns @ scaled
        return gx, g_lambda, g_gamma, None
