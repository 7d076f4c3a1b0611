"""LoRA's projection down for a batch of any adapters; see `server.adapters.kernels.lora_expand`.

Knows no bank, no layout and no model.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.adapters.kernels.lora_expand import LoraPart, rank_block, segment_of
from server.adapters.kernels.segments import TOKENS_EACH, Segments
from server.adapters.memory.layouts import PAGE
from server.kernels.dependent_launch import early, let_next_begin, wait
from server.kernels.launch_parts import cdiv

_ENTRIES = 16384  # of A by one program at a time
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
    _shrink[grid](
        s, x, memory, segments.table, tuple(part.a_at for part in parts),
        tokens, width, x.stride(0), PAGE_ENTRIES=PAGE, SLOTS=TOKENS_EACH, STEPS=steps,
        BLOCK_K=block_k, RANK=rank, BLOCK_R=block_r, RANK_BLOCKS=rank_blocks,
        EARLY=begun, num_warps=4, num_stages=3, launch_pdl=begun,
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
    EARLY: tl.constexpr,
):
    let_next_begin(EARLY)
    page, alone, first, token = segment_of(table, tl.program_id(2), SLOTS)
    if page == 0:
        wait(EARLY)
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
        one = _shrink_one(own, a, known, split * STEPS, width, STEPS, BLOCK_K, EARLY)
        tl.store(s + first * row, one, mask=known)
    else:
        # A quarter at a time: the tokens' x lies next to A in shared memory, in several stages.
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
    STEPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
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
