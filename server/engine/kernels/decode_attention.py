"""Attention of one query token for each sequence, over keys and values in blocks.

The running softmax of Milakov and Gimelshein (arXiv 1805.02867), its context split over programs
as in Dao et al.'s Flash-Decoding. Knows no layers and no scheduling.
"""

import math
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.kernels.dependent_launch import early, let_next_begin, wait

# Two programs for each of an H200's 132 multiprocessors.
_PROGRAMS: Final = 264
# A program of fewer keys spends more on its start and on the reduction than on them.
_FEWEST_KEYS: Final = 128
# One program reads some tens of KB a microsecond: where tables hold more keys than these, waiting
# for a long row costs more than a reduction for all.
_MOST_KEYS: Final = 8192
# ... but beside long tables, programs of short rows have nothing to do: so at most so many.
_MOST_PROGRAMS: Final = 2048
# The reduction holds all splits of a head at once.
_MOST_SPLITS: Final = 64
# Of a tile of keys, so that five programs with all their stages fit a multiprocessor.
_TILE_BYTES: Final = 8192
_FEWEST_TILE_KEYS: Final = 16
_MOST_TILE_KEYS: Final = 128
_WARPS: Final = 4
# The block table's entries come before the keys that they point to: of four stages between loads
# and sums, keys and values have two.
_STAGES: Final = 5
# Tensor cores take no fewer rows: the heads of a group fill some of them, and zeros the others.
_FEWEST_HEADS: Final = 16
_EVERY_KEY: Final = 2**31 - 1


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scaling: float,
    window: int | None = None,
) -> Tensor:
    """softmax(q . keys * scaling) @ values, for the last token of each row's context.

    A row's cost depends on its context, not on the width of the table. Sums are float32.

    Args:
        q: [rows, heads * D], any row stride. Head h reads kv head h // (heads / kv_heads).
        keys, values: [kv_heads, blocks, block_tokens, D], contiguous, of q's dtype.
        block_tables: int32 [rows, w], inner stride 1: the blocks of each row's tokens, in order.
        context_lens: int32 [rows]: tokens of each row, its last one included; 0: a padding row,
            whose table is not read.
        window: how many tokens back are seen, the last one included; None: all.

    Returns: [rows, heads * D], contiguous, of q's dtype; zeros for padding rows.
    """
    rows = q.shape[0]
    kv_heads, _, block_tokens, head_dim = keys.shape
    heads = q.shape[1] // head_dim
    width = block_tables.shape[1] * block_tokens
    splits = split_count(rows * kv_heads, min(width, window or width))
    out = torch.empty((rows, heads * head_dim), dtype=q.dtype, device=q.device)
    partial, weight = out, out
    if splits > 1:
        partial = q.new_empty((rows, heads, splits, head_dim), dtype=torch.float32)
        weight = q.new_empty((rows, heads, splits), dtype=torch.float32)
    block_dim = triton.next_power_of_2(head_dim)
    tile = _TILE_BYTES // (block_dim * keys.itemsize)
    group = heads // kv_heads
    begun = early(q.device)
    _attend[(rows, kv_heads, splits)](
        q, keys, values, block_tables, context_lens, partial, weight,
        scaling, window or _EVERY_KEY, q.stride(0), block_tables.stride(0), keys.stride(0),
        GROUP=group, BLOCK_TOKENS=block_tokens, HEAD_DIM=head_dim, SPLIT=splits > 1,
        BLOCK_GROUP=max(triton.next_power_of_2(group), _FEWEST_HEADS), BLOCK_DIM=block_dim,
        TILE=min(max(tile, _FEWEST_TILE_KEYS), _MOST_TILE_KEYS), FEWEST_KEYS=_FEWEST_KEYS,
        EARLY=begun, num_warps=_WARPS, num_stages=_STAGES, launch_pdl=begun,
    )  # fmt: skip
    if splits > 1:
        _join[(rows, heads)](
            partial, weight, out, splits, HEAD_DIM=head_dim,
            BLOCK_DIM=block_dim, BLOCK_SPLITS=triton.next_power_of_2(splits), EARLY=begun,
            num_warps=4, launch_pdl=begun,
        )  # fmt: skip
    return out


def split_count(programs: int, most_keys: int) -> int:
    """How many splits each context has: by shapes alone, so that a graph can be captured.

    Args:
        programs: how many there are without splitting, rows times kv heads.
        most_keys: of the widest row.
    """
    programs = max(programs, 1)
    fills = min(_PROGRAMS // programs, math.ceil(most_keys / _FEWEST_KEYS))
    balances = min(_MOST_PROGRAMS // programs, math.ceil(most_keys / _MOST_KEYS))
    return min(max(fills, balances, 1), _MOST_SPLITS)


def reference_decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scaling: float,
    window: int | None = None,
) -> Tensor:
    """What `decode_attention` computes, row by row in float32; it waits for the device."""
    kv_heads, _, block_tokens, head_dim = keys.shape
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for row, context in enumerate(context_lens.tolist()):
        seen = range(max(context - (window or context), 0), context)
        if not seen:
            continue
        at = torch.tensor(seen, device=q.device)
        place = block_tables[row].long()[at // block_tokens] * block_tokens + at % block_tokens
        key, value = (memory.flatten(1, 2)[:, place].float() for memory in (keys, values))
        query = q[row].float().view(kv_heads, -1, head_dim)
        weights = (query @ key.transpose(1, 2) * scaling).softmax(dim=-1)
        out[row] = (weights @ value).flatten()
    return out


@triton.jit(do_not_specialize=["window", "table_stride"])
def _attend(
    q_ptr,
    keys_ptr,
    values_ptr,
    tables_ptr,
    contexts_ptr,
    out_ptr,
    weight_ptr,
    scaling,
    window,
    q_stride,
    table_stride,
    kv_head_stride,
    GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    TILE: tl.constexpr,
    FEWEST_KEYS: tl.constexpr,
    EARLY: tl.constexpr,
):
    let_next_begin(EARLY)
    wait(EARLY)
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split, splits = tl.program_id(2), tl.num_programs(2)
    dtype = keys_ptr.dtype.element_ty
    context = tl.load(contexts_ptr + row)
    begin = tl.maximum(context - window, 0)
    # Every split but the last ones is whole tiles; short contexts leave the last ones without keys.
    part = tl.maximum(tl.cdiv(tl.cdiv(context - begin, splits), TILE) * TILE, FEWEST_KEYS)
    begin += split * part
    end = tl.minimum(begin + part, context)

    dim = tl.arange(0, BLOCK_DIM)[None, :]
    in_dim = dim < HEAD_DIM
    member = tl.arange(0, BLOCK_GROUP)
    head = kv_head * GROUP + member
    inside = (member < GROUP)[:, None] & in_dim
    q = tl.load(q_ptr + row * q_stride + head[:, None] * HEAD_DIM + dim, mask=inside, other=0.0)
    # The softmax is of base 2: its exponentials are one instruction.
    scale = scaling * 1.4426950408889634
    best = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    sums = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    key_head = keys_ptr + kv_head * kv_head_stride + dim
    value_head = values_ptr + kv_head * kv_head_stride + dim
    table = tables_ptr + row * table_stride
    for tile in range(begin, end, TILE):
        token = tile + tl.arange(0, TILE)
        seen = token < end
        block = tl.load(table + token // BLOCK_TOKENS, mask=seen, other=0).to(tl.int64)
        place = (block * BLOCK_TOKENS + token % BLOCK_TOKENS)[:, None] * HEAD_DIM
        read = seen[:, None] & in_dim
        key = tl.load(key_head + place, mask=read, other=0.0)
        value = tl.load(value_head + place, mask=read, other=0.0)
        score = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, axis=1))
        exponential = tl.exp2(score - new_best[:, None])
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(exponential, axis=1)
        sums = sums * shrink[:, None]
        sums += tl.dot(exponential.to(dtype), value, input_precision="ieee")
        best = new_best

    # Without keys the total is 0, and so are the sums.
    total = tl.where(total > 0, total, 1.0)
    out = (row * tl.num_programs(1) * GROUP + head) * splits + split
    mean = (sums / total[:, None]).to(out_ptr.dtype.element_ty)
    if SPLIT:
        tl.store(weight_ptr + out, best + tl.log2(total), mask=member < GROUP)
        inside = inside & (begin < end)
    tl.store(out_ptr + out[:, None] * HEAD_DIM + dim, mean, mask=inside)


@triton.jit(do_not_specialize=["splits"])
def _join(
    partial_ptr,
    weight_ptr,
    out_ptr,
    splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Mean of the splits' means, by their softmax totals, of which `weight` is the log2."""
    let_next_begin(EARLY)
    wait(EARLY)
    head = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    split = tl.arange(0, BLOCK_SPLITS)
    dim = tl.arange(0, BLOCK_DIM)[None, :]
    weight = tl.load(weight_ptr + head * splits + split, mask=split < splits, other=float("-inf"))
    best = tl.max(weight, axis=0)
    # A padding row has no split with keys, and every share must be 0.
    share = tl.exp2(weight - tl.where(best == float("-inf"), 0.0, best))
    read = (share > 0)[:, None] & (dim < HEAD_DIM)
    place = (head * splits + split)[:, None] * HEAD_DIM + dim
    partial = tl.load(partial_ptr + place, mask=read, other=0.0)
    total = tl.sum(share, axis=0)
    mean = tl.sum(partial * share[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    dim = tl.arange(0, BLOCK_DIM)
    out = out_ptr + head * HEAD_DIM + dim
    tl.store(out, mean.to(out_ptr.dtype.element_ty), mask=dim < HEAD_DIM)
