"""LoRA's up-projections of a gate and of what it gates, and the gate, in one launch.

    act[t] = silu(gate[t] + B_gate s_gate[t]) * (up[t] + B_up s_up[t])

or with GELU in silu's place. Segments bring their adapters' tokens, as in
`server.adapters.kernels.lora_expand`; programs behind them take the tokens that have none. Knows no
bank, no layout and no model.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import gelu, silu

from server.adapters.kernels.lora_expand import (
    EXPAND_ENTRIES,
    LoraPart,
    block_of,
    downs_of,
    expand_many,
    expand_one,
    rank_block,
    reference_expand,
    segment_of,
)
from server.adapters.kernels.segments import TOKENS_EACH, Segments
from server.adapters.memory.layouts import PAGE
from server.kernels.dependent_launch import early, let_next_begin, wait
from server.kernels.gating import gated
from server.kernels.launch_parts import cdiv

_SEVEN_EACH = 72  # registers: seven programs run on a multiprocessor, and none are spilt


def expand_gate(
    gate_up: Tensor,
    s: Tensor,
    memory: Tensor,
    segments: Segments,
    pages: Tensor,
    gate_part: LoraPart | None,
    up_part: LoraPart | None,
    width: int,
    rank: int,
    is_gelu: bool = False,
) -> Tensor:
    """silu(gate + its delta) * (up + its delta), the deltas being `expand`'s.

    Sums and silu are rounded as separate kernels would round them.

    Args:
        gate_up: [tokens, at least 2 * width], gate first, inner stride 1; it is not written.
        s: as for `expand`; its parts are those of the two that are not None, in this order.
        pages: [tokens], int64, contiguous: 0 for the tokens that are in no segment.
        gate_part, up_part: where their matrices lie; None: not adapted. Columns go by `width`.
        is_gelu: the activation is GELU in its tanh form, not SiLU.

    Returns: [tokens, width], contiguous.
    """
    tokens = gate_up.shape[0]
    act = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if tokens == 0:
        return act
    block_r = rank_block(rank)
    block_n = EXPAND_ENTRIES // block_r // 2  # of each of the two
    grid = (cdiv(width, block_n), segments.capacity + cdiv(tokens, TOKENS_EACH))
    begun = early(act.device)
    _expand_gate[grid](
        act, gate_up, s, memory, segments.table, pages,
        gate_part.b_at if gate_part else 0, up_part.b_at if up_part else 0,
        tokens, width, segments.capacity,
        gate_up.stride(0), s.stride(0), s.stride(1), s.stride(2),
        GATE=gate_part is not None, UP=up_part is not None, GELU=is_gelu, PAGE_ENTRIES=PAGE,
        SLOTS=TOKENS_EACH, SPLITS=len(s), BLOCK_N=block_n, RANK=rank, BLOCK_R=block_r, EARLY=begun,
        num_warps=4, num_stages=2, launch_pdl=begun,
        maxnreg=_SEVEN_EACH if rank * act.itemsize <= 128 else None,
    )  # fmt: skip
    return act


def reference_expand_gate(
    gate_up: Tensor,
    s: Tensor,
    memory: Tensor,
    segments: Segments,
    gate_part: LoraPart | None,
    up_part: LoraPart | None,
    width: int,
    rank: int,
    is_gelu: bool = False,
) -> Tensor:
    """What `expand_gate` does, with `reference_expand`."""
    y = gate_up[:, : 2 * width].clone()
    parts = [part for part in (gate_part, up_part) if part is not None]
    reference_expand(y, s, memory, segments, parts, rank)
    gate, up = y[:, :width], y[:, width:]
    return (gelu(gate, approximate="tanh") if is_gelu else silu(gate)) * up


@triton.jit
def _expand_gate(
    act,
    gate_up,
    s,
    memory,
    table,
    pages,
    gate_b_at,
    up_b_at,
    tokens,
    width,
    capacity,
    gate_up_stride,
    s_split,
    s_token,
    s_part,
    EARLY: tl.constexpr,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    GELU: tl.constexpr,
    PAGE_ENTRIES: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    let_next_begin(EARLY)
    first_column = tl.program_id(0) * BLOCK_N
    n = first_column + tl.arange(0, BLOCK_N)
    inside = n < width
    number = tl.program_id(1)
    dtype = act.dtype.element_ty
    if number >= capacity:
        m = (number - capacity) * SLOTS + tl.arange(0, SLOTS)
        plain = (m < tokens) & (tl.load(pages + m, mask=m < tokens, other=1) == 0)
        wait(EARLY)
        m = m.to(tl.int64)[:, None]
        here = plain[:, None] & inside[None, :]
        at = gate_up + m * gate_up_stride + n[None, :]
        gates = tl.load(at, mask=here, other=0.0).to(tl.float32)
        ups = tl.load(at + width, mask=here, other=0.0).to(tl.float32)
        tl.store(act + m * width + n[None, :], gated(gates, ups, dtype, GELU), mask=here)
        return
    page, alone, first, token = segment_of(table, number, SLOTS)
    if page == 0:
        wait(EARLY)
        return
    row = memory + page * PAGE_ENTRIES
    up_s = s
    if GATE:
        up_s += s_part
    if alone:
        b = row + (n * RANK)[:, None]
        if GATE:
            gate_wide = block_of(b + gate_b_at, inside, 0, RANK, BLOCK_R)
        if UP:
            up_wide = block_of(b + up_b_at, inside, 0, RANK, BLOCK_R)
        wait(EARLY)
        one_at = gate_up + first * gate_up_stride + n
        gate = tl.load(one_at, mask=inside, other=0.0)
        up = tl.load(one_at + width, mask=inside, other=0.0)
        own = first * s_token
        gate_delta, up_delta = 0.0, 0.0
        if GATE:
            one = s + own
            gate_delta = expand_one(
                gate_wide, one, s_split, b + gate_b_at, inside, SPLITS, RANK, BLOCK_R
            )
        if UP:
            one = up_s + own
            up_delta = expand_one(up_wide, one, s_split, b + up_b_at, inside, SPLITS, RANK, BLOCK_R)
        gate, up = gate.to(tl.float32) + gate_delta, up.to(tl.float32) + up_delta
        tl.store(act + first * width + n, gated(gate, up, dtype, GELU), mask=inside)
    else:
        wait(EARLY)
        filled = token >= 0
        gate_s = s + token * s_token
        own_up_s = up_s + token * s_token
        if GATE:
            gate_downs = downs_of(gate_s, s_split, filled, 0, SPLITS, RANK, BLOCK_R)
        if UP:
            up_downs = downs_of(own_up_s, s_split, filled, 0, SPLITS, RANK, BLOCK_R)
        for quarter in tl.range(0, 4, num_stages=2):  # see `_expand`
            some = first_column + quarter * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)
            bs = row + (some * RANK)[:, None]
            known = some < width
            all_here = filled & known[None, :]
            all_at = gate_up + token * gate_up_stride + some[None, :]
            gates = tl.load(all_at, mask=all_here, other=0.0).to(tl.float32)
            ups = tl.load(all_at + width, mask=all_here, other=0.0).to(tl.float32)
            if GATE:
                gates += expand_many(
                    gate_downs, gate_s, s_split, bs + gate_b_at, filled, known,
                    SPLITS, RANK, BLOCK_R,
                )  # fmt: skip
            if UP:
                ups += expand_many(
                    up_downs, own_up_s, s_split, bs + up_b_at, filled, known,
                    SPLITS, RANK, BLOCK_R,
                )  # fmt: skip
            into = act + token * width + some[None, :]
            tl.store(into, gated(gates, ups, dtype, GELU), mask=all_here)
