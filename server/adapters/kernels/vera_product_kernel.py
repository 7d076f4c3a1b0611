"""VeRA's up-projection for a batch of any adapters (arXiv 2310.11454, equation 2).

    y[t] += b[t] * (bt^T (d[t] * z[t]))         z = A x: [tokens, rank], computed elsewhere

Rows of `memory` are adapters, each from a page on; d and b are gathered by the kernels themselves.
A token of page 0 is the base model's: nothing of its row is read, and nothing is added. Knows no
bank, no layout and no model.

At few tokens this is bound by latency and by what multiprocessors read of the L2 cache, where bt
stays from layer to layer. A program then asks for all that it reads at once, what does not wait for
the tokens' pages first, and tiles are near the shape that reads least. d goes through L1, for where
one adapter has many tokens all programs ask the L2 cache for the same few sectors of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from server.adapters.memory.layouts import PAGE
from server.kernels.dependent_launch import early, let_next_begin, wait
from server.kernels.launch_parts import cdiv, part_of, power_of_two, tiles_over


class VeraPart(NamedTuple):
    """One linear: its outputs' first column in y, and where d and b lie in an adapter's row."""

    column: int
    out_features: int
    d_at: int
    b_at: int


class Tiles(NamedTuple):
    """What one program covers: tokens by columns, and how many ranks it takes at a time.

    Where that is all ranks, nothing is pipelined and `stages` says nothing.
    """

    tokens: int
    columns: int
    ranks: int
    warps: int
    stages: int

    def stages_at(self, rank: int) -> int:
        """How deep to pipeline at this rank.

        Triton 3.6 gives wrong sums where it pipelines some operands of a product and not others
        (128 x 128 tiles, an H200). It copies those ahead whose masks it knows to be aligned, and of
        a mask by rank it knows that only for multiples of 16.
        """
        return self.stages if rank % 16 == 0 else 1


_FEW_TOKENS = 64
_MOST_AT_ONCE = 256  # ranks; more would not fit a program's registers and shared memory
_ROUND_OF_SMALL = 132 * 64 * 64  # outputs: fewer would leave multiprocessors without a small tile
_ROUND_OF_LARGE = 132 * 128 * 128  # outputs: fewer would leave multiprocessors without a large tile


def tiles_for(
    tokens: int, columns: int, rank: int, products: int = 1, entry_bytes: int = 2
) -> Tiles:
    """What suits this many outputs, chosen from shapes alone.

    Args:
        products: how many accumulators a program holds.
        entry_bytes: of the operands, which lie in shared memory.
    """
    ranks = max(power_of_two(rank), 16)
    if tokens <= _FEW_TOKENS and ranks * entry_bytes <= 2 * _MOST_AT_ONCE:
        # Fewer columns than 64 are no product of a warp group.
        most = (16 if columns < 4096 else 32) * products
        if tokens * columns > _ROUND_OF_SMALL:
            most = 64
        rows = min(max(power_of_two(tokens), 16), most)
        wide = 128 if columns > 16384 else 64
        return Tiles(rows, wide, ranks, warps=16 if rows * wide > 4096 else 8, stages=1)
    ranks = min(ranks, 128 // entry_bytes)
    if tokens * columns < _ROUND_OF_LARGE:
        return Tiles(64, 64, ranks, warps=4, stages=3)
    return Tiles(128, 128 // products, ranks, warps=8, stages=3)


def add_vera(
    y: Tensor,
    z: Tensor,
    bt: Tensor,
    memory: Tensor,
    pages: Tensor,
    parts: Sequence[VeraPart],
    rank: int,
    tiles: Tiles | None = None,
) -> None:
    """y[t, column + n] += b[n] * sum_r z[t, r] d[r] bt[r, n] for n < out_features, for every part.

    Linears whose matrices differ (one basis a layer) take a call each.

    Args:
        y: [tokens, width], inner stride 1, any row stride.
        z: [tokens, at least rank], likewise; it may be further columns of y's tensor.
        bt: [at least rank, widest], inner stride 1.
        memory: [entries], of y's dtype.
        pages: [tokens], int64, contiguous: where each token's adapter's row begins; 0: none.
        parts: linears that share z and bt; no two share a column.
        tiles: instead of `tiles_for`'s choice, to measure others.
    """
    tokens = y.shape[0]
    if tokens == 0:
        return
    columns = sum(part.out_features for part in parts)
    tiles = tiles or tiles_for(tokens, columns, rank, entry_bytes=y.itemsize)
    grid = (tiles_over(parts, tiles.columns), cdiv(tokens, tiles.tokens))
    begun = early(y.device)
    _add_vera[grid](
        y, z, bt, memory, pages, tuple(map(tuple, parts)), tokens, rank,
        y.stride(0), z.stride(0), bt.stride(0), PAGE_ENTRIES=PAGE, EARLY=begun,
        BLOCK_M=tiles.tokens, BLOCK_N=tiles.columns, BLOCK_K=tiles.ranks,
        RANK_STEPS=cdiv(rank, tiles.ranks),
        num_warps=tiles.warps, num_stages=tiles.stages_at(rank), launch_pdl=begun,
    )  # fmt: skip


def reference_add_vera(
    y: Tensor,
    z: Tensor,
    bt: Tensor,
    memory: Tensor,
    pages: Tensor,
    parts: Sequence[VeraPart],
    rank: int,
) -> None:
    """What `add_vera` does, token by token."""
    for token, page in enumerate(pages.tolist()):
        for part in parts if page else ():
            row = memory[page * PAGE :]
            d = row[part.d_at : part.d_at + rank]
            b = row[part.b_at : part.b_at + part.out_features]
            wide = (z[token, :rank] * d).float() @ bt[:rank, : part.out_features].float()
            mine = y[token, part.column : part.column + part.out_features]
            mine.copy_(mine.float() + b.float() * wide)


@triton.jit
def rows_of(pages, tokens, BLOCK_M: tl.constexpr):
    """This program's tokens, and the page of each: 0 for the base's and for those past the end."""
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    # All that follows waits for it, and a layer's weights would drive it from the L2 cache.
    page = tl.load(pages + m, mask=m < tokens, other=0, eviction_policy="evict_last")
    return m.to(tl.int64)[:, None], page.to(tl.int64)[:, None]


@triton.jit
def slab_of(bt, bt_stride, k, n, rank, width):
    """[ranks, columns] of bt, which all layers read: it is to stay in the L2 cache."""
    known = (k < rank)[:, None] & (n < width)[None, :]
    at = bt + k.to(tl.int64)[:, None] * bt_stride + n[None, :]
    # Triton 3.6 keeps this hint only where all ranks are one step: its pipelined copies have none.
    return tl.load(at, mask=known, other=0.0, eviction_policy="evict_last")


@triton.jit
def scaled(z, d, known):
    """d * z, rounded to their dtype; z is 0 where not `known`, whatever was read there."""
    return tl.where(known, z, 0.0) * d


@triton.jit
def wide_of(slab, left):
    """left times slab. Turned round, for the product reads its second operand in shared memory:
    what is left of it is then done in the registers that it was loaded to, and goes there once."""
    return tl.trans(tl.dot(tl.trans(slab), tl.trans(left), input_precision="ieee"))


@triton.jit
def _shared_page(page):
    """The largest page, and whether all tokens that have an adapter have that one."""
    most = tl.max(page)
    return most, tl.min(tl.where(page > 0, page, most)) == most


@triton.jit
def _summed(
    sums,
    z,
    d,
    adapted,
    bt,
    bt_stride,
    n,
    rank,
    width,
    BLOCK_K: tl.constexpr,
    RANK_STEPS: tl.constexpr,
):
    """sums + (d * z) bt, step by step. d: of each token, [tokens, 1], or of all, [1, 1]."""
    for step in range(RANK_STEPS):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        known = (k < rank)[None, :]
        own = tl.load(z + k[None, :], mask=adapted & known, other=0.0)
        scales = tl.load(d + k[None, :], mask=known, other=0.0)
        slab = slab_of(bt, bt_stride, k, n, rank, width)
        left = scaled(own, scales, adapted & known)
        sums = tl.dot(left, slab, sums, input_precision="ieee")
    return sums


@triton.jit
def _add_vera(
    y,
    z,
    bt,
    memory,
    pages,
    parts,
    tokens,
    rank,
    y_stride,
    z_stride,
    bt_stride,
    PAGE_ENTRIES: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RANK_STEPS: tl.constexpr,
):
    let_next_begin(EARLY)
    m, page = rows_of(pages, tokens, BLOCK_M)
    _, column, out_features, d_at, b_at, start = part_of(tl.program_id(0), parts, BLOCK_N)
    n = start + tl.arange(0, BLOCK_N)
    adapted = page > 0
    inside = (n < out_features)[None, :]
    row = memory + page * PAGE_ENTRIES
    z += m * z_stride
    into = y + m * y_stride + column + n[None, :]
    if RANK_STEPS == 1:
        k = tl.arange(0, BLOCK_K)
        known = (k < rank)[None, :]
        slab = slab_of(bt, bt_stride, k, n, rank, out_features)
        d = tl.load(row + d_at + k[None, :], mask=adapted & known, other=0.0)
        b = tl.load(row + b_at + n[None, :], mask=adapted & inside)
        wait(EARLY)
        plain = tl.load(into, mask=(m < tokens) & inside)
        own = tl.load(z + k[None, :], mask=(m < tokens) & known, other=0.0)
        wide = wide_of(slab, scaled(own, d, adapted))
        tl.store(into, plain.to(tl.float32) + b.to(tl.float32) * wide, mask=adapted & inside)
        return
    wait(EARLY)
    most, shared = _shared_page(page)
    if most == 0:
        return
    b = tl.load(row + b_at + n[None, :], mask=adapted & inside)
    plain = tl.load(into, mask=adapted & inside)
    wide = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if shared:
        one_d = memory + most * PAGE_ENTRIES + d_at + tl.zeros([1, 1], tl.int32)
        wide = _summed(
            wide, z, one_d, adapted, bt, bt_stride, n, rank, out_features, BLOCK_K, RANK_STEPS
        )
    else:
        own_d = row + d_at
        wide = _summed(
            wide, z, own_d, adapted, bt, bt_stride, n, rank, out_features, BLOCK_K, RANK_STEPS
        )
    tl.store(into, plain.to(tl.float32) + b.to(tl.float32) * wide, mask=adapted & inside)
