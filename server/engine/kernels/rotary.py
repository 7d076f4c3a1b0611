"""Rotates queries and keys by their positions, and stores keys and values, in one pass.

Where a model normalises each head of them first, the same pass does that too.

Rotary position embedding: Su et al., arXiv 2104.09864, equation 34, with the halves of a head as
transformers pairs them. Knows no sequences: each token comes with its angles and its place.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.engine.kernels.norm import normed, reference_add_rms_norm
from server.kernels.dependent_launch import early, let_next_begin, wait

# Of queries and keys: with 32 and 8 heads of 128 a thread then holds 20 of them.
_ENTRIES_PER_WARP = 1024
_MOST_WARPS = 16


class HeadNorms(NamedTuple):
    """Root mean square norms of each head: weights [D] of q's dtype or float32, as for
    `server.engine.kernels.norm.add_rms_norm`."""

    q: Tensor
    k: Tensor
    eps: float


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    write_at: Tensor,
    norms: HeadNorms | None = None,
) -> None:
    """Rotate q and k in place, then copy k and v to the cache: nan as 0, infinities as the largest.

    Products and their sum are rounded to q's dtype one by one, as in transformers.

    Args:
        q: [tokens, heads * D], any row stride.
        k, v: [tokens, kv_heads * D], any row stride.
        cos, sin: [tokens, D], any row stride, of q's dtype; columns D / 2 on repeat the first half.
        keys, values: [kv_heads, blocks, block_tokens, D], contiguous, of q's dtype.
        write_at: int64 [tokens], `block * block_tokens + offset` of each token.
        norms: of the heads of q and k, before they are rotated; None: there are none.
    """
    tokens = q.shape[0]
    kv_heads, blocks, block_tokens, head_dim = keys.shape
    heads = q.shape[1] // head_dim
    entries = triton.next_power_of_2((heads + kv_heads) * head_dim)
    begun = early(q.device)
    _rotate_and_store[(tokens,)](
        q, k, v, cos, sin, keys, values, write_at, *(norms or HeadNorms(q, k, 0.0)),
        q.stride(0), k.stride(0), v.stride(0), cos.stride(0), sin.stride(0),
        blocks * block_tokens,
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim,
        BLOCK_HEADS=triton.next_power_of_2(heads),
        BLOCK_KV_HEADS=triton.next_power_of_2(kv_heads),
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        LARGEST=torch.finfo(keys.dtype).max,
        NORMS=norms is not None, EARLY=begun, launch_pdl=begun,
        num_warps=min(max(entries // _ENTRIES_PER_WARP, 1), _MOST_WARPS),
    )  # fmt: skip


def reference_rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    write_at: Tensor,
    norms: HeadNorms | None = None,
) -> None:
    """What `rotate_and_store` does, written plainly."""
    head_dim = keys.shape[-1]
    for x, gain in ((q, norms and norms.q), (k, norms and norms.k)):
        heads = x.unflatten(1, (-1, head_dim))
        if norms is not None and gain is not None:
            heads = reference_add_rms_norm(heads, None, gain, norms.eps)
        first, second = heads.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        x.copy_((heads * cos[:, None] + turned * sin[:, None]).flatten(1))
    for memory, x in ((keys, k), (values, v)):
        finite = torch.nan_to_num(x).unflatten(1, (-1, head_dim))
        memory.flatten(1, 2)[:, write_at] = finite.transpose(0, 1)


@triton.jit
def _turn(rows, cos, sin, inside, norm_ptr, pair, eps, HEAD_DIM: tl.constexpr, NORMS: tl.constexpr):
    """Normalise heads, if they have norms, and rotate them in place. Returns: their halves.

    Each half has a tile of its own, so that one thread holds both entries of a pair.
    """
    dtype = rows.dtype.element_ty
    first = tl.load(rows, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(rows + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
    # A tile smaller than the program is held by several warps: none may store before all have read.
    tl.debug_barrier()
    if NORMS:
        paired = pair < HEAD_DIM // 2
        weight = tl.load(norm_ptr + pair, mask=paired, other=0.0)
        second_weight = tl.load(norm_ptr + pair + HEAD_DIM // 2, mask=paired, other=0.0)
        squares = tl.sum(first * first + second * second, axis=1)[:, None]
        first = normed(first, squares, weight, eps, HEAD_DIM, dtype)
        second = normed(second, squares, second_weight, eps, HEAD_DIM, dtype)
    a = (first * cos).to(dtype).to(tl.float32) - (second * sin).to(dtype).to(tl.float32)
    b = (second * cos).to(dtype).to(tl.float32) + (first * sin).to(dtype).to(tl.float32)
    tl.store(rows, a.to(dtype), mask=inside)
    tl.store(rows + HEAD_DIM // 2, b.to(dtype), mask=inside)
    return a.to(dtype), b.to(dtype)


@triton.jit
def _finite(x, LARGEST: tl.constexpr):
    # A block is read to its end, and 0 * nan is nan: see `KVCache.write`.
    wide = x.to(tl.float32)
    wide = tl.where(wide != wide, 0.0, wide)
    return tl.minimum(tl.maximum(wide, -LARGEST), LARGEST).to(x.dtype)


@triton.jit
def _rotate_and_store(
    q_ptr,
    k_ptr,
    v_ptr,
    cos_ptr,
    sin_ptr,
    keys_ptr,
    values_ptr,
    write_at_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    q_stride,
    k_stride,
    v_stride,
    cos_stride,
    sin_stride,
    places,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KV_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    LARGEST: tl.constexpr,
    NORMS: tl.constexpr,
    EARLY: tl.constexpr,
):
    let_next_begin(EARLY)
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    paired = pair < HEAD_DIM // 2
    place = tl.load(write_at_ptr + token)
    cos = tl.load(cos_ptr + token * cos_stride + pair, mask=paired, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * sin_stride + pair, mask=paired, other=0.0).to(tl.float32)

    head = tl.arange(0, BLOCK_HEADS)[:, None]
    entry = head * HEAD_DIM + pair
    q_row, inside = q_ptr + token * q_stride + entry, paired & (head < HEADS)
    _turn(q_row, cos, sin, inside, q_norm_ptr, pair, eps, HEAD_DIM, NORMS)

    kv_head = tl.arange(0, BLOCK_KV_HEADS)[:, None]
    inside = paired & (kv_head < KV_HEADS)
    entry = kv_head * HEAD_DIM + pair
    k_row = k_ptr + token * k_stride + entry
    a, b = _turn(k_row, cos, sin, inside, k_norm_ptr, pair, eps, HEAD_DIM, NORMS)
    slot = (kv_head * places + place) * HEAD_DIM + pair
    tl.store(keys_ptr + slot, _finite(a, LARGEST), mask=inside)
    tl.store(keys_ptr + slot + HEAD_DIM // 2, _finite(b, LARGEST), mask=inside)

    v_row = v_ptr + token * v_stride + entry
    a = tl.load(v_row, mask=inside, other=0.0)
    b = tl.load(v_row + HEAD_DIM // 2, mask=inside, other=0.0)
    tl.store(values_ptr + slot, _finite(a, LARGEST), mask=inside)
    tl.store(values_ptr + slot + HEAD_DIM // 2, _finite(b, LARGEST), mask=inside)
