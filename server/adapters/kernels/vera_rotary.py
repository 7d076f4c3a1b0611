"""VeRA's deltas of queries, keys and values, their rotation, and their way to the cache, at once.

A program has some tokens of one head, both halves of it, which is what a rotation pairs. For few
tokens: all ranks are taken at once (`takes`). Knows no bank, no layout and no model.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.adapters.kernels.parts import cdiv, power_of_two
from server.adapters.kernels.vera import VeraPart, ask_slab, rows_of, scaled, times_slab
from server.adapters.layouts import PAGE

_MOST_TOKENS = 64
_MOST_RANKS = 256
_TILE_TOKENS = 16
_NOWHERE = VeraPart(0, 0, 0, 0)


def takes(tokens: int, head_dim: int, rank: int, entry_bytes: int) -> bool:
    """Whether `rotate_vera` is made for these."""
    fits = head_dim >= 32 and head_dim & (head_dim - 1) == 0
    return tokens <= _MOST_TOKENS and rank <= _MOST_RANKS and entry_bytes == 2 and fits


def rotate_vera(
    qkv: Tensor,
    z: Tensor,
    bt: Tensor,
    memory: Tensor,
    pages: Tensor,
    parts: Sequence[VeraPart | None],
    rank: int,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    write_at: Tensor,
) -> None:
    """`add_vera`, then the rotation of q and k in place, then k and v stored, nan as 0.

    Args:
        qkv: [tokens, at least (heads + 2 * kv_heads) * D], inner stride 1: q, k and v side by side.
        parts: of q, k and v; None: not adapted.
        cos, sin: [tokens, D], any row stride; columns D / 2 on repeat the first half.
        keys, values: [kv_heads, blocks, block_tokens, D], contiguous, of qkv's dtype.
        write_at: int64 [tokens], `block * block_tokens + offset` of each token.
        Others as for `add_vera`.
    """
    tokens = qkv.shape[0]
    kv_heads, blocks, block_tokens, head_dim = keys.shape
    if tokens == 0:
        return
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    q, k, v = ((part or _NOWHERE) for part in parts)
    places = tuple((it.d_at, it.b_at, int(it.out_features > 0)) for it in (q, k, v))
    _rotate_vera[(heads + 2 * kv_heads, cdiv(tokens, _TILE_TOKENS))](
        qkv, z, bt, memory, pages, places, cos, sin, keys, values, write_at, tokens, rank,
        qkv.stride(0), z.stride(0), bt.stride(0), cos.stride(0), sin.stride(0),
        blocks * block_tokens, bt.shape[1],
        HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, PAGE_ENTRIES=PAGE,
        BLOCK_M=_TILE_TOKENS, BLOCK_K=max(power_of_two(rank), 16),
        LARGEST=torch.finfo(keys.dtype).max, num_warps=8, num_stages=1,
    )  # fmt: skip


@triton.jit
def _finite(x, LARGEST: tl.constexpr):
    # A block is read to its end, and 0 * nan is nan: see `KVCache.write`.
    wide = x.to(tl.float32)
    wide = tl.where(wide != wide, 0.0, wide)
    return tl.minimum(tl.maximum(wide, -LARGEST), LARGEST).to(x.dtype)


@triton.jit
def _rotate_vera(
    qkv,
    z,
    bt,
    memory,
    pages,
    places,
    cos_ptr,
    sin_ptr,
    keys,
    values,
    write_at,
    tokens,
    rank,
    qkv_stride,
    z_stride,
    bt_stride,
    cos_stride,
    sin_stride,
    cache_places,
    bt_width,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PAGE_ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LARGEST: tl.constexpr,
):
    m, page = rows_of(pages, tokens, BLOCK_M)
    head = tl.program_id(0)
    which = (head >= HEADS).to(tl.int32) + (head >= HEADS + KV_HEADS).to(tl.int32)
    own_head = head - tl.where(which == 0, 0, tl.where(which == 1, HEADS, HEADS + KV_HEADS))
    d_at, b_at, present = places[0]
    for i in tl.static_range(1, 3):
        d_at = tl.where(which == i, places[i][0], d_at)
        b_at = tl.where(which == i, places[i][1], b_at)
        present = tl.where(which == i, places[i][2], present)
    real = m < tokens
    adapted = (page > 0) & (present > 0)
    row = memory + page * PAGE_ENTRIES
    k = tl.arange(0, BLOCK_K)
    known = (k < rank)[None, :]
    pair = tl.arange(0, HALF)
    n = own_head * (2 * HALF) + pair
    # Where a linear is not adapted, bt may be narrower than it is: nothing of it is read.
    width = tl.where(present > 0, bt_width, 0)
    slab_a = ask_slab(bt, bt_stride, k, n, rank, width)
    slab_b = ask_slab(bt, bt_stride, k, n + HALF, rank, width)
    d = tl.load(row + d_at + k[None, :], mask=adapted & known, other=0.0)
    at_b = row + b_at + n[None, :]
    b_a = tl.load(at_b, mask=adapted, other=0.0)
    b_b = tl.load(at_b + HALF, mask=adapted, other=0.0)
    at = qkv + m * qkv_stride + head * (2 * HALF) + pair[None, :]
    a = tl.load(at, mask=real, other=0.0)
    b = tl.load(at + HALF, mask=real, other=0.0)
    cos = tl.load(cos_ptr + m * cos_stride + pair[None, :], mask=real, other=0.0)
    sin = tl.load(sin_ptr + m * sin_stride + pair[None, :], mask=real, other=0.0)
    place = tl.load(write_at + m, mask=real, other=0)
    own = tl.load(z + m * z_stride + k[None, :], mask=real & known, other=0.0)
    left = scaled(own, d, adapted)
    dtype = a.dtype
    wide_a, wide_b = times_slab(left, slab_a), times_slab(left, slab_b)
    a = (a.to(tl.float32) + b_a.to(tl.float32) * wide_a).to(dtype)
    b = (b.to(tl.float32) + b_b.to(tl.float32) * wide_b).to(dtype)
    if which < 2:
        # Products and their sum are rounded one by one, as in transformers.
        cosine, sine = cos.to(tl.float32), sin.to(tl.float32)
        first, second = a.to(tl.float32), b.to(tl.float32)
        turned = (first * cosine).to(dtype).to(tl.float32)
        a = (turned - (second * sine).to(dtype).to(tl.float32)).to(dtype)
        turned = (second * cosine).to(dtype).to(tl.float32)
        b = (turned + (first * sine).to(dtype).to(tl.float32)).to(dtype)
    tl.store(at, a, mask=real)
    tl.store(at + HALF, b, mask=real)
    slot = (own_head.to(tl.int64) * cache_places + place) * (2 * HALF) + pair[None, :]
    tl.store(keys + slot, _finite(a, LARGEST), mask=real & (which == 1))
    tl.store(keys + slot + HALF, _finite(b, LARGEST), mask=real & (which == 1))
    tl.store(values + slot, _finite(a, LARGEST), mask=real & (which == 2))
    tl.store(values + slot + HALF, _finite(b, LARGEST), mask=real & (which == 2))
