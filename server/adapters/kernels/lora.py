"""LoRA for a batch of any adapters (arXiv 2106.09685, equation 3): two launches a site.

    s[t] = A x[t]          `shrink`, in `lora_shrink`: A is [rank, in], rows contiguous
    y[t] += B s[t]         `expand`: B is [out, rank], contiguous

Rows of `memory` are adapters, each from a page on. Where every token has its own adapter this is
bound by reading A and B, once each: a program asks for 16 to 32 KB at once, multiplies in the
registers that it arrives in, and no tensor core is used. Where a segment has several tokens, tensor
cores take all of them by one read. Sums of parts of a long input are added in a fixed order, so
that the same batch always gives the same bits. Knows no bank, no layout and no model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from server.adapters.kernels.overlap import (
    ahead_of,
    ask,
    ask_entries,
    distance,
    early,
    let_next_begin,
    wait,
)
from server.adapters.kernels.parts import part_of, power_of_two, tiles_over
from server.adapters.kernels.segments import TOKENS_EACH, Segments
from server.adapters.layouts import PAGE


class LoraPart(NamedTuple):
    """One linear: its outputs' first column in y, and where A and B lie in an adapter's row."""

    column: int
    in_features: int
    out_features: int
    a_at: int
    b_at: int


EXPAND_ENTRIES = 8192  # of B by one program at a time


def expand(
    y: Tensor,
    s: Tensor,
    memory: Tensor,
    segments: Segments,
    parts: Sequence[LoraPart],
    rank: int,
    *,
    then: Tensor | None = None,
) -> None:
    """y[t, column_p + n] += sum_r B_p[n, r] s[t, p, r] for n < out_features, for every part p.

    s, summed over its splits, is rounded to y's dtype before it meets B, as in torch.

    Args:
        y: [tokens, width], inner stride 1, any row stride.
        s: [splits, tokens, parts, rank], any dtype, inner stride 1, other strides as they come:
            `z[None, :, None, :].expand(1, -1, len(parts), -1)` gives all parts the same `A x`.
        rank: of the room: B is [out, rank] there.
        then: a weight that is read soon after.
    """
    if len(y) == 0 or segments.capacity == 0 or not parts:
        return
    block_r = rank_block(rank)
    block_n = EXPAND_ENTRIES // block_r
    places = tuple((part.column, part.out_features, part.a_at, part.b_at) for part in parts)
    grid = (tiles_over(parts, block_n), segments.capacity)
    begun = early(y.device)
    _expand[grid](
        y, s, memory, segments.table, places,
        y.stride(0), s.stride(0), s.stride(1), s.stride(2),
        *ahead_of(then, y, grid[0] * grid[1], 4), PAGE_ENTRIES=PAGE, SLOTS=TOKENS_EACH,
        SPLITS=len(s), BLOCK_N=block_n, RANK=rank, BLOCK_R=block_r, EARLY=begun, THREADS=128,
        DISTANCE=distance(grid[0], y.device), num_warps=4, num_stages=2, launch_pdl=begun,
    )  # fmt: skip


def rank_block(rank: int) -> int:
    return min(max(power_of_two(rank), 16), 64)


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
def page_later(table, number, segments, SLOTS: tl.constexpr, DISTANCE: tl.constexpr):
    """The page of the segment that many later, 0 if there is none."""
    later = number + DISTANCE
    return tl.load(table + later * (1 + SLOTS), mask=later < segments, other=0).to(tl.int64)


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
    ahead,
    ahead_start,
    ahead_stride,
    ahead_count,
    PAGE_ENTRIES: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    EARLY: tl.constexpr,
    THREADS: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    let_next_begin(EARLY)
    number = tl.program_id(1)
    page, alone, first, token = segment_of(table, number, SLOTS)
    part, column, out_features, _, b_at, start = part_of(tl.program_id(0), parts, BLOCK_N)
    n = start + tl.arange(0, BLOCK_N)
    if DISTANCE > 0:
        later = page_later(table, number, tl.num_programs(1), SLOTS, DISTANCE)
        next_b = memory + later * PAGE_ENTRIES + b_at
        size = tl.where(later > 0, tl.minimum(out_features - start, BLOCK_N), 0)
        ask_entries(next_b + start * RANK, size * RANK, THREADS)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    programs = tl.num_programs(0) * tl.num_programs(1)
    wait(EARLY)
    ask(ahead, ahead_start, ahead_stride, ahead_count, program, programs, THREADS)
    if page == 0:
        return
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
