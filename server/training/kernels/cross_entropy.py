"""Cross-entropy of rows of logits, forward and backward, without a float32 copy of the logits.

    loss[t] = log(sum(exp(logits[t]))) - logits[t, target]      glogits[t] = g[t] (p[t] - 1[target])

where p is the softmax.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 4096
_WARPS = 8


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """See `server.training.run.loss.cross_entropy`; `reference_cross_entropy` there is its
    reference.

    Args:
        logits: [rows, vocabulary], inner stride 1.
        targets: int64 [rows].
    """
    out: tuple[Tensor, Tensor] = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return out


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        rows, vocabulary = logits.shape
        losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
        sums = torch.empty_like(losses)
        hits = torch.empty(rows, dtype=torch.bool, device=logits.device)
        _forward[(rows,)](
            logits, targets, losses, sums, hits, logits.stride(0), vocabulary,
            BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(logits, targets, sums)
        ctx.mark_non_differentiable(hits)
        return losses, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, None]:
        logits, targets, sums = ctx.saved_tensors
        rows, vocabulary = logits.shape
        g_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        _backward[(rows, triton.cdiv(vocabulary, _BLOCK))](
            g.contiguous(), logits, targets, sums, g_logits, logits.stride(0), vocabulary,
            BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
        return g_logits, None


@triton.jit
def _forward(
    logits_ptr, targets_ptr, losses_ptr, sums_ptr, hits_ptr, stride, vocabulary, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    best = tl.full((), 0, tl.int32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < vocabulary
        x = tl.load(logits_ptr + row * stride + column, mask=inside, other=float("-inf"))
        x = x.to(tl.float32)
        most = tl.max(x, axis=0)
        # The first of equals, as argmax takes it.
        first = tl.min(tl.where(x == most, column, vocabulary), axis=0)
        best = tl.where(most > largest, first, best)
        larger = tl.maximum(most, largest)
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), axis=0)
        largest = larger
    logsum = largest + tl.log(total)
    tl.store(sums_ptr + row, logsum)
    tl.store(losses_ptr + row, logsum - tl.load(logits_ptr + row * stride + target).to(tl.float32))
    tl.store(hits_ptr + row, best == target)


@triton.jit
def _backward(
    g_ptr, logits_ptr, targets_ptr, sums_ptr, g_logits_ptr, stride, vocabulary, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocabulary
    g = tl.load(g_ptr + row)
    x = tl.load(logits_ptr + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    p = tl.exp(x - tl.load(sums_ptr + row))
    p = tl.where(column == tl.load(targets_ptr + row), p - 1.0, p)
    p = (g * p).to(g_logits_ptr.dtype.element_ty)
    tl.store(g_logits_ptr + row * vocabulary + column, p, mask=inside)
