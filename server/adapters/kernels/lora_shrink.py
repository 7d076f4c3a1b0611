"""LoRA's projection down for a batch of any adapters; see `server.adapters.kernels.lora`.

Knows no bank, no layout and no model.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.adapters.kernels.lora import LoraPart, page_later, rank_block, segment_of
from server.adapters.kernels.overlap import (
    ask_piece,
    ask_rows,
    distance,
    early,
    let_next_begin,
    segments_ahead,
    wait,
)
from server.adapters.kernels.parts import cdiv
from server.adapters.kernels.segments import TOKENS_EACH, Segments
from server.adapters.layouts import PAGE

_ENTRIES = 16384  # of A by one program at a time
_PROGRAMS = 132 * 8  # enough to keep every multiprocessor waiting for memory, not for work
_MOST_SPLITS = 16  # whoever reads a sum adds them all, for every tile of outputs


def shrink(
    x: Tensor,
    memory: Tensor,
    segments: Segments,
    parts: Sequence[LoraPart],
    rank: int,
    *,
    expands: bool = False,
) -> Tensor:
    """sum_i s[i, t, p, r] = sum_k A_p[r, k] x[t, k], for every part p.

    Args:
        x: [tokens, in], inner stride 1, any row stride; what all parts read.
        memory: [entries], of x's dtype.
        rank: of the room: A is [rank, in] there.
        expands: whether `expand` comes next: the parts' B are then asked for meanwhile.

    Returns: s, float32 [splits, tokens, parts, rank], summed by whoever reads it. Rows of tokens in
        no segment are not written.
    """
    tokens, width = x.shape
    block_r = rank_block(rank)
    block_k = _ENTRIES // block_r
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
    begun = early(x.device)
    b_bytes = [part.out_features * rank * x.itemsize if expands else 0 for part in parts]
    # Each of a segment's programs for a part asks for some of its B.
    pieces = [size // (splits * rank_blocks) // 16 * 16 for size in b_bytes]
    places = tuple((it.a_at, it.b_at, piece) for it, piece in zip(parts, pieces, strict=True))
    _shrink[grid](
        s, x, memory, segments.table, places, segments_ahead(sum(b_bytes), x),
        tokens, width, x.stride(0), PAGE_ENTRIES=PAGE, SLOTS=TOKENS_EACH, STEPS=steps,
        BLOCK_K=block_k, RANK=rank, BLOCK_R=block_r, RANK_BLOCKS=rank_blocks,
        EARLY=begun, THREADS=128, DISTANCE=distance(grid[0] * grid[1], x.device),
        num_warps=4, num_stages=3, launch_pdl=begun,
    )  # fmt: skip
    return s


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


@triton.jit
def _shrink(
    s,
    x,
    memory,
    table,
    parts,
    segments_ahead,
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
    EARLY: tl.constexpr,
    THREADS: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    let_next_begin(EARLY)
    number = tl.program_id(2)
    page, alone, first, token = segment_of(table, number, SLOTS)
    later = page_later(table, number, tl.num_programs(2), SLOTS, DISTANCE)
    if page == 0:
        wait(EARLY)
        return
    split = tl.program_id(0)
    part = tl.program_id(1) // RANK_BLOCKS
    r = tl.program_id(1) % RANK_BLOCKS * BLOCK_R + tl.arange(0, BLOCK_R)
    at, b_at, piece = parts[0]
    for i in tl.static_range(1, len(parts)):
        at = tl.where(part == i, parts[i][0], at)
        b_at = tl.where(part == i, parts[i][1], b_at)
        piece = tl.where(part == i, parts[i][2], piece)
    known = r < RANK
    adapter = memory + page * PAGE_ENTRIES
    a = adapter + at + (r * width)[:, None]
    b = (adapter + b_at).to(tl.int64)
    b += (split * RANK_BLOCKS + tl.program_id(1) % RANK_BLOCKS).to(tl.int64) * piece
    piece = tl.where(number < segments_ahead, piece, 0)
    row = len(parts) * RANK
    s += split.to(tl.int64) * tokens * row + part * RANK + r
    if alone:
        own = x + first * x_stride
        next_a = (
            memory + later * PAGE_ENTRIES + at + tl.program_id(1) % RANK_BLOCKS * BLOCK_R * width
        )
        one = _shrink_one(
            own, a, known, split * STEPS, width, b, piece, next_a, later, STEPS, BLOCK_K, EARLY,
            THREADS, DISTANCE,
        )  # fmt: skip
        tl.store(s + first * row, one, mask=known)
    else:
        # A quarter at a time: the tokens' x lies beside A in shared memory, in several stages.
        ask_piece(b, piece, THREADS)
        wait(EARLY)
        filled = token >= 0
        block = split * STEPS * 4
        owns = x + token * x_stride
        many = _shrink_many(owns, a, filled, known, block, width, STEPS * 4, BLOCK_K // 4)
        tl.store(s[None, :] + token * row, many, mask=filled & known[None, :])


@triton.jit
def _shrink_one(
    x,
    a,
    known,
    block,
    width,
    b,
    piece,
    next_a,
    later,
    STEPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
    THREADS: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    sums = tl.zeros(known.shape, tl.float32)
    if STEPS > 1:
        wait(EARLY)
    for step in range(STEPS):
        k = (block + step) * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = known[:, None] & (k < width)[None, :]
        narrow = tl.load(a + k[None, :], mask=inside, other=0.0, eviction_policy="evict_first")
        if STEPS == 1:
            wait(EARLY)
        own = tl.load(x + k, mask=k < width, other=0.0)
        if step == 0:
            if DISTANCE > 0:
                span = tl.minimum(width - block * BLOCK_K, STEPS * BLOCK_K)
                rows = tl.where(later > 0, known.shape[0], 0)
                ask_rows(next_a + block * BLOCK_K, width, span, rows, THREADS)
            ask_piece(b, piece, THREADS)
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
