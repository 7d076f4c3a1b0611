"""Add to the residual stream and normalise it, forward and backward in one kernel each.

    h' = h + delta        x = w * n        n = h' r        r = 1 / sqrt(mean(h'^2) + eps)
    gh = gdelta = gh' + r (w gx - n mean(w gx n))

Root mean square layer normalisation: Zhang and Sennrich, arXiv 1910.07467, equation 4.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_WIDTH_PER_WARP = 512
_MOST_WARPS = 16


def add_rms_norm(
    h: Tensor, delta: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `server.training.run.layer_ops.add_rms_norm`, its reference; h and delta contiguous."""
    out: tuple[Tensor, Tensor] = _AddNorm.apply(h, delta, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        tokens, hidden = h.shape
        x = torch.empty_like(h)
        summed = h if delta is None else torch.empty_like(h)
        r = torch.empty(tokens, dtype=torch.float32, device=h.device)
        _forward[(tokens,)](
            h, h if delta is None else delta, weight, summed, x, r, eps,
            ADD=delta is not None, **_shape(hidden),
        )  # fmt: skip
        ctx.save_for_backward(summed, weight, r)
        return summed, x

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_summed: Tensor, gx: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        summed, weight, r = ctx.saved_tensors
        tokens, hidden = summed.shape
        g = torch.empty_like(summed)
        _backward[(tokens,)](
            g_summed.contiguous(), gx.contiguous(), summed, weight, r, g, **_shape(hidden)
        )
        return g, g if ctx.needs_input_grad[1] else None, None, None


def _shape(hidden: int) -> dict[str, int]:
    block = triton.next_power_of_2(hidden)
    warps = min(max(block // _WIDTH_PER_WARP, 1), _MOST_WARPS)
    return {"HIDDEN": hidden, "BLOCK": block, "num_warps": warps}


@triton.jit
def _forward(
    h_ptr,
    delta_ptr,
    weight_ptr,
    summed_ptr,
    x_ptr,
    r_ptr,
    eps,
    ADD: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    at = token * HIDDEN + column
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        h += tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = h.to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + at, rounded, mask=inside)
        h = rounded.to(tl.float32)
    r = tl.rsqrt(tl.sum(h * h, axis=0) / HIDDEN + eps)
    tl.store(r_ptr + token, r)
    x = (h * r).to(weight.dtype).to(tl.float32) * weight.to(tl.float32)
    tl.store(x_ptr + at, x.to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    g_summed_ptr,
    gx_ptr,
    summed_ptr,
    weight_ptr,
    r_ptr,
    g_ptr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    at = token * HIDDEN + column
    r = tl.load(r_ptr + token)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    n = tl.load(summed_ptr + at, mask=inside, other=0.0).to(tl.float32) * r
    gn = tl.load(gx_ptr + at, mask=inside, other=0.0).to(tl.float32) * weight
    g = tl.load(g_summed_ptr + at, mask=inside, other=0.0).to(tl.float32)
    g += r * (gn - n * (tl.sum(gn * n, axis=0) / HIDDEN))
    tl.store(g_ptr + at, g.to(g_ptr.dtype.element_ty), mask=inside)
