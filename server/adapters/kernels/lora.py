"""LoRA for a batch of any adapters (arXiv 2106.09685, equation 3): two launches a site.

    s[t] = A x[t]          `shrink`: A is [rank, in], rows contiguous
    y[t] += B s[t]         `expand`: B is [out, rank], contiguous

Rows of `memory` are adapters, each from a page on. Where every token has its own adapter this is
bound by reading A and B, once each: a program asks for 16 to 32 KB at once, multiplies in the
registers that it arrives in, and no tensor core is used. Where a segment has several tokens, tensor
cores take all of them by one read. Sums of parts of a long input are added in a fixed order, so
that the same batch always gives the same bits. Knows no bank, no layout and no model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.adapters.kernels.parts import cdiv, part_of, power_of_two, tiles_over
from server.adapters.kernels.segments import TOKENS_EACH, Segments
from server.adapters.layouts import PAGE


class LoraPart(NamedTuple):
    """One linear: its outputs' first column in y, and where A and B lie in an adapter's row."""

    column: int
    in_features: int
    out_features: int
    a_at: int
    b_at: int


_SHRINK_ENTRIES = 16384  # of A by one program at a time
EXPAND_ENTRIES = 8192  # of B
_PROGRAMS = 132 * 8  # enough to keep every multiprocessor waiting for memory, not for work
_MOST_SPLITS = 16  # whoever reads a sum adds them all, for every tile of outputs


def shrink(
    x: Tensor, memory: Tensor, segments: Segments, parts: Sequence[LoraPart], rank: int
) -> Tensor:
    """sum_i s[i, t, p, r] = sum_k A_p[r, k] x[t, k], for every part p.

    Args:
        x: [tokens, in], inner stride 1, any row stride; what all parts read.
        memory: [entries], of x's dtype.
        rank: of the room: A is [rank, in] there.

    Returns: s, float32 [splits, tokens, parts, rank], summed by whoever reads it. Rows of tokens in
        no segment are not written.
    """
    tokens, width = x.shape
    block_r = rank_block(rank)
    block_k = _SHRINK_ENTRIES // block_r
    rank_blocks = cdiv(rank, block_r)
    blocks = cdiv(width, block_k)
    programs = segments.capacity * len(parts) * rank_blocks  # of each split
    wanted = min(cdiv(_PROGRAMS, max(programs, 1)), _MOST_SPLITS)
    steps = cdiv(blocks, min(blocks, wanted))
    splits = cdiv(blocks, steps)
    s = torch.empty((splits, tokens, len(parts), rank), dtype=torch.float32, device=x.device)
    if tokens == 0 or programs == 0:
        return s
    grid = (splits, len(parts) * rank_blocks, segments.capacity)
    _shrink[grid](
        s, x, memory, segments.table, tuple(part.a_at for part in parts),
        tokens, width, x.stride(0), PAGE_ENTRIES=PAGE, SLOTS=TOKENS_EACH, STEPS=steps,
        BLOCK_K=block_k, RANK=rank, BLOCK_R=block_r, RANK_BLOCKS=rank_blocks,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return s


def expand(
    y: Tensor,
    s: Tensor,
    memory: Tensor,
    segments: Segments,
    parts: Sequence[LoraPart],
    rank: int,
) -> None:
    """y[t, column_p + n] += sum_r B_p[n, r] s[t, p, r] for n < out_features, for every part p.

    s, summed over its splits, is rounded to y's dtype before it meets B, as in torch.

    Args:
        y: [tokens, width], inner stride 1, any row stride.
        s: [splits, tokens, parts, rank], any dtype, inner stride 1, other strides as they come:
            `z[None, :, None, :].expand(1, -1, len(parts), -1)` gives all parts the same `A x`.
        rank: of the room: B is [out, rank] there.
    """
    if len(y) == 0 or segments.capacity == 0 or not parts:
        return
    block_r = rank_block(rank)
    block_n = EXPAND_ENTRIES // block_r
    places = tuple((part.column, part.out_features, part.a_at, part.b_at) for part in parts)
    grid = (tiles_over(parts, block_n), segments.capacity)
    _expand[grid](
        y, s, memory, segments.table, places,
        y.stride(0), s.stride(0), s.stride(1), s.stride(2), PAGE_ENTRIES=PAGE, SLOTS=TOKENS_EACH,
        SPLITS=len(s), BLOCK_N=block_n, RANK=rank, BLOCK_R=block_r, num_warps=4, num_stages=2,
    )  # fmt: skip


def rank_block(rank: int) -> int:
    return min(max(power_of_two(rank), 16), 64)


def reference_shrink(
    x: Tensor, memory: Tensor, segments: Segments, parts: Sequence[LoraPart], rank: int
) -> Tensor:
    """What `shrink` does, token by token, in one split; zeros where nothing is written."""
    s = x.new_zeros((1, len(x), len(parts), rank), dtype=torch.float32)
    for page, *rows in segments.table.tolist():
        for index, part in enumerate(parts):
            stop = part.a_at + rank * part.in_features
            a = memory[page * PAGE :][part.a_at : stop].view(rank, part.in_features)
            for token in (row for row in rows if row >= 0):
                s[0, token, index] = a.float() @ x[token].float()
    return s


def reference_expand(
    y: Tensor,
    s: Tensor,
    memory: Tensor,
    segments: Segments,
    parts: Sequence[LoraPart],
    rank: int,
) -> None:
    """What `expand` does, token by token."""
    for page, *rows in segments.table.tolist():
        for index, part in enumerate(parts):
            stop = part.b_at + part.out_features * rank
            b = memory[page * PAGE :][part.b_at : stop].view(part.out_features, rank)
            for token in (row for row in rows if row >= 0):
                down = s[:, token, index].float().sum(0).to(y.dtype)
                mine = y[token, part.column : part.column + part.out_features]
                mine.copy_(mine.float() + b.float() @ down.float())


@triton.jit
def segment_of(table, number, SLOTS: tl.constexpr):
    """A segment's page, 0 if it is unused; if it has one token only, which one; all as a column."""
    at = table + number * (1 + SLOTS)
    page = tl.load(at).to(tl.int64)
    first = tl.load(at + 1).to(tl.int64)
    second = tl.load(at + 2)
    all_of_it = tl.load(at + 1 + tl.arange(0, SLOTS)).to(tl.int64)[:, None]
    # Never so, but where the first branch waits for one number alone, the others are loaded after.
    page = tl.where((first < 0) | (second < -1), 0, page)
    return page, second < 0, first, all_of_it


@triton.jit
def _shrink(
    s,
    x,
    memory,
    table,
    a_at,
    tokens,
    width,
    x_stride,
    PAGE_ENTRIES: tl.constexpr,
    SLOTS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    RANK_BLOCKS: tl.constexpr,
):
    page, alone, first, token = segment_of(table, tl.program_id(2), SLOTS)
    if page == 0:
        return
    split = tl.program_id(0)
    part = tl.program_id(1) // RANK_BLOCKS
    r = tl.program_id(1) % RANK_BLOCKS * BLOCK_R + tl.arange(0, BLOCK_R)
    at = a_at[0]
    for i in tl.static_range(1, len(a_at)):
        at = tl.where(part == i, a_at[i], at)
    known = r < RANK
    a = memory + page * PAGE_ENTRIES + at + (r * width)[:, None]
    row = len(a_at) * RANK
    s += split.to(tl.int64) * tokens * row + part * RANK + r
    if alone:
        own = x + first * x_stride
        one = _shrink_one(own, a, known, split * STEPS, width, STEPS, BLOCK_K)
        tl.store(s + first * row, one, mask=known)
    else:
        # A quarter at a time: the tokens' x lies beside A in shared memory, in several stages.
        filled = token >= 0
        block = split * STEPS * 4
        owns = x + token * x_stride
        many = _shrink_many(owns, a, filled, known, block, width, STEPS * 4, BLOCK_K // 4)
        tl.store(s[None, :] + token * row, many, mask=filled & known[None, :])


@triton.jit
def _shrink_one(x, a, known, block, width, STEPS: tl.constexpr, BLOCK_K: tl.constexpr):
    sums = tl.zeros(known.shape, tl.float32)
    for step in range(STEPS):
        k = (block + step) * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = known[:, None] & (k < width)[None, :]
        narrow = tl.load(a + k[None, :], mask=inside, other=0.0, eviction_policy="evict_first")
        own = tl.load(x + k, mask=k < width, other=0.0)
        sums += tl.sum(narrow.to(tl.float32) * own.to(tl.float32)[None, :], 1)
    return sums


@triton.jit
def _shrink_many(x, a, filled, known, block, width, STEPS: tl.constexpr, BLOCK_K: tl.constexpr):
    sums = tl.zeros([filled.shape[0], known.shape[0]], tl.float32)
    for step in range(STEPS):
        k = ((block + step) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
        narrow = tl.load(a + k, mask=known[:, None] & (k < width), other=0.0)
        own = tl.load(x + k, mask=filled & (k < width), other=0.0)
        sums = tl.dot(own, tl.trans(narrow), sums, input_precision="ieee")
    return sums


@triton.jit
def _expand(
    y,
    s,
    memory,
    table,
    parts,
    y_stride,
    s_split,
    s_token,
    s_part,
    PAGE_ENTRIES: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    page, alone, first, token = segment_of(table, tl.program_id(1), SLOTS)
    if page == 0:
        return
    part, column, out_features, _, b_at, n = part_of(tl.program_id(0), parts, BLOCK_N)
    b = memory + page * PAGE_ENTRIES + b_at + (n * RANK)[:, None]
    s += part * s_part
    y += column + n
    inside = n < out_features
    if alone:
        at = y + first * y_stride
        plain = tl.load(at, mask=inside, other=0.0)
        delta = expand_one(s + first * s_token, s_split, b, inside, SPLITS, RANK, BLOCK_R)
        tl.store(at, plain.to(tl.float32) + delta, mask=inside)
    else:
        filled = token >= 0
        here = filled & inside[None, :]
        ats = y[None, :] + token * y_stride
        plains = tl.load(ats, mask=here, other=0.0)
        downs = s + token * s_token
        deltas = expand_many(downs, s_split, b, filled, inside, SPLITS, RANK, BLOCK_R)
        tl.store(ats, plains.to(tl.float32) + deltas, mask=here)


@triton.jit
def expand_one(
    s,
    s_split,
    b,
    inside,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    sums = tl.zeros(inside.shape, tl.float32)
    for start in tl.static_range(0, RANK, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        known = inside[:, None] & (r < RANK)[None, :]
        wide = tl.load(b + r[None, :], mask=known, other=0.0, eviction_policy="evict_first")
        down = tl.zeros([BLOCK_R], tl.float32)
        for split in tl.static_range(SPLITS):
            down += tl.load(s + split * s_split + r, mask=r < RANK, other=0.0)
        down = down.to(wide.dtype).to(tl.float32)
        sums += tl.sum(wide.to(tl.float32) * down[None, :], 1)
    return sums


@triton.jit
def expand_many(
    s,
    s_split,
    b,
    filled,
    inside,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    sums = tl.zeros([filled.shape[0], inside.shape[0]], tl.float32)
    for start in tl.static_range(0, RANK, BLOCK_R):
        r = (start + tl.arange(0, BLOCK_R))[None, :]
        wide = tl.load(b + r, mask=inside[:, None] & (r < RANK), other=0.0)
        down = tl.zeros([filled.shape[0], BLOCK_R], tl.float32)
        for split in tl.static_range(SPLITS):
            down += tl.load(s + split * s_split + r, mask=filled & (r < RANK), other=0.0)
        sums = tl.dot(down.to(wide.dtype), tl.trans(wide), sums, input_precision="ieee")
    return sums
