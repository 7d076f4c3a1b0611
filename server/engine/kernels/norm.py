"""Adds to the residual stream and normalises it, in one pass. Knows no model and no layers.

Root mean square layer normalisation: Zhang and Sennrich, arXiv 1910.07467, equation 4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.kernels.dependent_launch import early, let_next_begin, wait

# Sixteen entries a thread: two loads of 16 bytes of each operand, and one pass for every width.
_WIDTH_PER_WARP = 512
_MOST_WARPS = 16


def add_rms_norm(
    h: Tensor, delta: Tensor | None, weight: Tensor, eps: float, first: Tensor | None = None
) -> Tensor:
    """h += delta in place, then h / sqrt(mean(h^2) + eps) * weight.

    Statistics are float32; the quotient is rounded to `weight`'s dtype before it meets `weight`: as
    in transformers' LlamaRMSNorm, or as in its Gemma3RMSNorm if `weight` is float32.

    Args:
        h: [tokens, hidden], any row stride; hidden at most 16384.
        delta: the same shape, any row stride; None: h stays as it is.
        weight: [hidden], contiguous, of h's dtype or float32.
        first: like `weight`; delta is normalised by it before it is added. None: it is added as is.

    Returns: [tokens, hidden], contiguous, of h's dtype.
    """
    tokens, hidden = h.shape
    x = torch.empty((tokens, hidden), dtype=h.dtype, device=h.device)
    block = triton.next_power_of_2(hidden)
    other = h if delta is None else delta
    begun = early(h.device)
    _add_rms_norm[(tokens,)](
        h, other, weight, weight if first is None else first, x, h.stride(0), other.stride(0), eps,
        HIDDEN=hidden, BLOCK=block, ADD=delta is not None, FIRST=first is not None, EARLY=begun,
        num_warps=min(max(block // _WIDTH_PER_WARP, 1), _MOST_WARPS), launch_pdl=begun,
    )  # fmt: skip
    return x


def reference_add_rms_norm(
    h: Tensor, delta: Tensor | None, weight: Tensor, eps: float, first: Tensor | None = None
) -> Tensor:
    """What `add_rms_norm` does, written plainly."""
    if delta is not None:
        h += delta if first is None else reference_add_rms_norm(delta, None, first, eps)
    wide = h.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * wide.to(weight.dtype)).to(h.dtype)


@triton.jit
def normed(x, square_sum, weight, eps, COUNT: tl.constexpr, dtype):
    """x / sqrt(mean(x^2) + eps) * weight as `add_rms_norm` rounds it, as float32."""
    x = (x * tl.rsqrt(square_sum / COUNT + eps)).to(weight.dtype).to(tl.float32)
    return (x * weight.to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def _add_rms_norm(
    h_ptr,
    delta_ptr,
    weight_ptr,
    first_ptr,
    x_ptr,
    h_stride,
    delta_stride,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    FIRST: tl.constexpr,
    EARLY: tl.constexpr,
):
    let_next_begin(EARLY)
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    h_row = h_ptr + token * h_stride + column
    dtype = x_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    if FIRST:
        first = tl.load(first_ptr + column, mask=inside, other=0.0)
    wait(EARLY)
    h = tl.load(h_row, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        delta = tl.load(delta_ptr + token * delta_stride + column, mask=inside, other=0.0)
        delta = delta.to(tl.float32)
        if FIRST:
            delta = normed(delta, tl.sum(delta * delta, axis=0), first, eps, HIDDEN, dtype)
        rounded = (h + delta).to(dtype)
        tl.store(h_row, rounded, mask=inside)
        h = rounded.to(tl.float32)
    x = normed(h, tl.sum(h * h, axis=0), weight, eps, HIDDEN, dtype)
    tl.store(x_ptr + token * HIDDEN + column, x.to(dtype), mask=inside)
