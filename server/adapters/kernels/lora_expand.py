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

from server.adapters.kernels.segments import TOKENS_EACH, Segments
from server.adapters.memory.layouts import PAGE
from server.kernels.dependent_launch import early, let_next_begin, wait
from server.kernels.launch_parts import part_of, power_of_two, tiles_over


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
    begun = early(y.device)
    _expand[grid](
        y, s, memory, segments.table, places,
        y.stride(0), s.stride(0), s.stride(1), s.stride(2), PAGE_ENTRIES=PAGE, SLOTS=TOKENS_EACH,
        SPLITS=len(s), BLOCK_N=block_n, RANK=rank, BLOCK_R=block_r, EARLY=begun,
        num_warps=4, num_stages=2, launch_pdl=begun,
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
    EARLY: tl.constexpr,
):
    let_next_begin(EARLY)
    page, alone, first, token = segment_of(table, tl.program_id(1), SLOTS)
    if page == 0:
        wait(EARLY)
        return
    part, column, out_features, _, b_at, start = part_of(tl.program_id(0), parts, BLOCK_N)
    adapter = memory + page * PAGE_ENTRIES + b_at
    s += part * s_part
    y += column
    if alone:
        n = start + tl.arange(0, BLOCK_N)
        b = adapter + (n * RANK)[:, None]
        inside = n < out_features
        wide = block_of(b, inside, 0, RANK, BLOCK_R)
        wait(EARLY)
        at = y + n + first * y_stride
        plain = tl.load(at, mask=inside, other=0.0)
        own = s + first * s_token
        delta = expand_one(wide, own, s_split, b, inside, SPLITS, RANK, BLOCK_R)
        tl.store(at, plain.to(tl.float32) + delta, mask=inside)
    else:
        # A quarter at a time: all at once take the registers of twice as many programs, and where
        # every token has its own adapter, the more programs the better.
        wait(EARLY)
        filled = token >= 0
        own_s = s + token * s_token
        downs = downs_of(own_s, s_split, filled, 0, SPLITS, RANK, BLOCK_R)
        for quarter in tl.range(0, 4, num_stages=2):
            own = start + quarter * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)
            bs = adapter + (own * RANK)[:, None]
            known = own < out_features
            here = filled & known[None, :]
            ats = y + own[None, :] + token * y_stride
            plains = tl.load(ats, mask=here, other=0.0)
            deltas = expand_many(downs, own_s, s_split, bs, filled, known, SPLITS, RANK, BLOCK_R)
            tl.store(ats, plains.to(tl.float32) + deltas, mask=here)


@triton.jit
def block_of(b, inside, start, RANK: tl.constexpr, BLOCK_R: tl.constexpr):
    """Some rows of B, [rows, BLOCK_R], from rank `start` on."""
    r = (start + tl.arange(0, BLOCK_R))[None, :]
    known = inside[:, None] & (r < RANK)
    return tl.load(b + r, mask=known, other=0.0, eviction_policy="evict_first")


@triton.jit
def expand_one(
    wide,
    s,
    s_split,
    b,
    inside,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """B s of one token. wide: the first of B's blocks, which needs no s and so came before it."""
    sums = _product(wide, s, s_split, 0, SPLITS, RANK, BLOCK_R)
    for start in tl.static_range(BLOCK_R, RANK, BLOCK_R):
        more = block_of(b, inside, start, RANK, BLOCK_R)
        sums += _product(more, s, s_split, start, SPLITS, RANK, BLOCK_R)
    return sums


@triton.jit
def _product(
    wide, s, s_split, start, SPLITS: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    r = start + tl.arange(0, BLOCK_R)
    down = tl.zeros([BLOCK_R], tl.float32)
    for split in tl.static_range(SPLITS):
        down += tl.load(s + split * s_split + r, mask=r < RANK, other=0.0)
    down = down.to(wide.dtype).to(tl.float32)
    return tl.sum(wide.to(tl.float32) * down[None, :], 1)


@triton.jit
def downs_of(
    s, s_split, filled, start, SPLITS: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr
):
    """s of several tokens summed over its splits, [tokens, BLOCK_R], from rank `start` on."""
    r = (start + tl.arange(0, BLOCK_R))[None, :]
    downs = tl.zeros([filled.shape[0], BLOCK_R], tl.float32)
    for split in tl.static_range(SPLITS):
        downs += tl.load(s + split * s_split + r, mask=filled & (r < RANK), other=0.0)
    return downs


@triton.jit
def expand_many(
    downs,
    s,
    s_split,
    b,
    filled,
    inside,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """B s of several tokens. downs: the first of s' blocks, for that is the same for all of B."""
    sums = tl.zeros([filled.shape[0], inside.shape[0]], tl.float32)
    for start in tl.static_range(0, RANK, BLOCK_R):
        r = (start + tl.arange(0, BLOCK_R))[None, :]
        wide = tl.load(b + r, mask=inside[:, None] & (r < RANK), other=0.0)
        if start > 0:
            downs = downs_of(s, s_split, filled, start, SPLITS, RANK, BLOCK_R)
        sums = tl.dot(downs.to(wide.dtype), tl.trans(wide), sums, input_precision="ieee")
    return sums
