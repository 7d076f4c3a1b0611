"""Rotate queries and keys by their positions, and gradients back, in one kernel.

Rotary position embedding: Su et al., arXiv 2104.09864, equation 34, with the halves of a head as
transformers pairs them. The backward pass rotates by the negative angle.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_ENTRIES_PER_WARP = 1024
_MOST_WARPS = 16


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `server.training.run.layer_ops.rotate`, its reference; all contiguous, D a power of two.

    Products and their sum are rounded one by one, as in transformers.
    """
    out: tuple[Tensor, Tensor] = _Rotate.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotated(q, k, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gq: Tensor, gk: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return *_rotated(gq.contiguous(), gk.contiguous(), cos, sin, back=True), None, None


def _rotated(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool
) -> tuple[Tensor, Tensor]:
    positions, head_dim = cos.shape
    heads, kv_heads = q.shape[1] // head_dim, k.shape[1] // head_dim
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    entries = triton.next_power_of_2(heads) * head_dim
    _rotate[(q.shape[0],)](
        q, k, cos, sin, q_out, k_out, positions,
        HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, BACK=back,
        BLOCK_HEADS=triton.next_power_of_2(heads),
        BLOCK_KV_HEADS=triton.next_power_of_2(kv_heads),
        num_warps=min(max(entries // _ENTRIES_PER_WARP, 1), _MOST_WARPS),
    )  # fmt: skip
    return q_out, k_out


@triton.jit
def _turn(x_ptr, out_ptr, cos, sin, at, inside, HALF: tl.constexpr):
    dtype = out_ptr.dtype.element_ty
    first = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + at + HALF, mask=inside, other=0.0).to(tl.float32)
    a = (first * cos).to(dtype).to(tl.float32) - (second * sin).to(dtype).to(tl.float32)
    b = (second * cos).to(dtype).to(tl.float32) + (first * sin).to(dtype).to(tl.float32)
    tl.store(out_ptr + at, a.to(dtype), mask=inside)
    tl.store(out_ptr + at + HALF, b.to(dtype), mask=inside)


@triton.jit
def _rotate(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    positions,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BACK: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KV_HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, HALF)[None, :]
    angle = (token % positions) * 2 * HALF + pair
    cos = tl.load(cos_ptr + angle).to(tl.float32)
    sin = tl.load(sin_ptr + angle).to(tl.float32)
    if BACK:
        sin = -sin
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    at = (token * HEADS + head) * 2 * HALF + pair
    _turn(q_ptr, q_out_ptr, cos, sin, at, (head < HEADS) & (pair < HALF), HALF)
    head = tl.arange(0, BLOCK_KV_HEADS)[:, None]
    at = (token * KV_HEADS + head) * 2 * HALF + pair
    _turn(k_ptr, k_out_ptr, cos, sin, at, (head < KV_HEADS) & (pair < HALF), HALF)
