"""VeRA's deltas of a gate and of what it gates, and the gate, in one launch.

    act[t] = silu(gate[t] + its delta) * (up[t] + its delta)

or with GELU in silu's place. The deltas are those of
`server.adapters.kernels.vera_product_kernel`. Knows no bank, no layout and no model.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import gelu, silu

from server.adapters.kernels.vera_product_kernel import (
    Tiles,
    VeraPart,
    reference_add_vera,
    rows_of,
    scaled,
    slab_of,
    tiles_for,
    wide_of,
)
from server.adapters.memory.layouts import PAGE
from server.kernels.dependent_launch import early, let_next_begin, wait
from server.kernels.gating import gated
from server.kernels.launch_parts import cdiv


def gate_vera(
    gate_up: Tensor,
    z: Tensor,
    bt: Tensor,
    memory: Tensor,
    pages: Tensor,
    gate_part: VeraPart | None,
    up_part: VeraPart | None,
    width: int,
    rank: int,
    tiles: Tiles | None = None,
    is_gelu: bool = False,
) -> Tensor:
    """silu(gate + its delta) * (up + its delta), the deltas being `add_vera`'s.

    One read of bt serves both. Sums and silu are rounded as separate kernels would round them.

    Args:
        gate_up: [tokens, at least 2 * width], gate first, inner stride 1; it is not written.
        gate_part, up_part: where their vectors lie; None: not adapted. Columns go by `width`.
        is_gelu: the activation is GELU in its tanh form, not SiLU.

    Returns: [tokens, width], contiguous.
    """
    tokens = gate_up.shape[0]
    act = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if tokens == 0:
        return act
    tiles = tiles or tiles_for(tokens, 2 * width, rank, products=2, entry_bytes=gate_up.itemsize)
    gate, up = gate_part or VeraPart(0, 0, 0, 0), up_part or VeraPart(0, 0, 0, 0)
    grid = (cdiv(width, tiles.columns), cdiv(tokens, tiles.tokens))
    begun = early(act.device)
    _gate_vera[grid](
        act, gate_up, z, bt, memory, pages, gate.d_at, gate.b_at, up.d_at, up.b_at,
        tokens, width, rank, gate_up.stride(0), z.stride(0), bt.stride(0),
        EARLY=begun, GATE=gate_part is not None, UP=up_part is not None, GELU=is_gelu,
        PAGE_ENTRIES=PAGE, BLOCK_M=tiles.tokens, BLOCK_N=tiles.columns, BLOCK_K=tiles.ranks,
        RANK_STEPS=cdiv(rank, tiles.ranks),
        num_warps=tiles.warps, num_stages=tiles.stages_at(rank), launch_pdl=begun,
    )  # fmt: skip
    return act


def reference_gate_vera(
    gate_up: Tensor,
    z: Tensor,
    bt: Tensor,
    memory: Tensor,
    pages: Tensor,
    gate_part: VeraPart | None,
    up_part: VeraPart | None,
    width: int,
    rank: int,
    is_gelu: bool = False,
) -> Tensor:
    """What `gate_vera` does, with `reference_add_vera`."""
    y = gate_up[:, : 2 * width].clone()
    parts = [part for part in (gate_part, up_part) if part is not None]
    reference_add_vera(y, z, bt, memory, pages, parts, rank)
    gate, up = y[:, :width], y[:, width:]
    return (gelu(gate, approximate="tanh") if is_gelu else silu(gate)) * up


@triton.jit
def _gate_vera(
    act,
    gate_up,
    z,
    bt,
    memory,
    pages,
    gate_d_at,
    gate_b_at,
    up_d_at,
    up_b_at,
    tokens,
    width,
    rank,
    gate_up_stride,
    z_stride,
    bt_stride,
    EARLY: tl.constexpr,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    GELU: tl.constexpr,
    PAGE_ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RANK_STEPS: tl.constexpr,
):
    let_next_begin(EARLY)
    m, page = rows_of(pages, tokens, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    adapted = page > 0
    inside = (m < tokens) & (n < width)[None, :]
    row = memory + page * PAGE_ENTRIES
    z += m * z_stride
    at = gate_up + m * gate_up_stride + n[None, :]
    if RANK_STEPS == 1:
        k = tl.arange(0, BLOCK_K)
        known = (k < rank)[None, :]
        slab = slab_of(bt, bt_stride, k, n, rank, width)
        if GATE:
            gate_d = tl.load(row + gate_d_at + k[None, :], mask=adapted & known, other=0.0)
        if UP:
            up_d = tl.load(row + up_d_at + k[None, :], mask=adapted & known, other=0.0)
    if GATE:
        gate_b = tl.load(row + gate_b_at + n[None, :], mask=adapted & inside, other=0.0)
    if UP:
        up_b = tl.load(row + up_b_at + n[None, :], mask=adapted & inside, other=0.0)
    wait(EARLY)
    gate = tl.load(at, mask=inside, other=0.0)
    up = tl.load(at + width, mask=inside, other=0.0)
    if RANK_STEPS == 1:
        own = tl.load(z + k[None, :], mask=(m < tokens) & known, other=0.0)
        if GATE:
            gate_wide = wide_of(slab, scaled(own, gate_d, adapted))
        if UP:
            up_wide = wide_of(slab, scaled(own, up_d, adapted))
    else:
        gate_wide = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up_wide = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(tl.where(tl.max(page) > 0, RANK_STEPS, 0)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            known = adapted & (k < rank)[None, :]
            slab = slab_of(bt, bt_stride, k, n, rank, width)
            own = tl.load(z + k[None, :], mask=known, other=0.0)
            if GATE:
                gate_d = tl.load(row + gate_d_at + k[None, :], mask=known, other=0.0)
                left = scaled(own, gate_d, known)
                gate_wide = tl.dot(left, slab, gate_wide, input_precision="ieee")
            if UP:
                up_d = tl.load(row + up_d_at + k[None, :], mask=known, other=0.0)
                left = scaled(own, up_d, known)
                up_wide = tl.dot(left, slab, up_wide, input_precision="ieee")
    dtype = gate.dtype
    if GATE:
        gate = (gate.to(tl.float32) + gate_b.to(tl.float32) * gate_wide).to(dtype)
    if UP:
        up = (up.to(tl.float32) + up_b.to(tl.float32) * up_wide).to(dtype)
    made = gated(gate, up, dtype, GELU)
    tl.store(act + m * width + n[None, :], made, mask=inside)
