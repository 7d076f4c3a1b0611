"""Computes the gate of an MLP, `silu(gate) * up` or with GELU, in one pass. Knows no weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import gelu, silu

from server.kernels.dependent_launch import early, let_next_begin, wait
from server.kernels.gating import gated

_BLOCK = 1024


def gate_mul(gate_up: Tensor, width: int, is_gelu: bool = False) -> Tensor:
    """silu(gate) * up, where gate is gate_up[:, :width] and up is gate_up[:, width : 2 * width].

    silu is computed in float32 and rounded before it meets `up`, as in torch.

    Args:
        gate_up: [tokens, at least 2 * width], any row stride; further columns are not read.
        is_gelu: the activation is GELU in its tanh form, not SiLU.

    Returns: [tokens, width], contiguous.
    """
    tokens = gate_up.shape[0]
    act = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    grid = (tokens, triton.cdiv(width, _BLOCK))
    begun = early(act.device)
    _gate_mul[grid](
        gate_up, act, gate_up.stride(0), WIDTH=width, BLOCK=_BLOCK, GELU=is_gelu, EARLY=begun,
        num_warps=4, launch_pdl=begun,
    )  # fmt: skip
    return act


def reference_gate_mul(gate_up: Tensor, width: int, is_gelu: bool = False) -> Tensor:
    """What `gate_mul` does, written plainly."""
    gate, up = gate_up[:, :width], gate_up[:, width : 2 * width]
    return (gelu(gate, approximate="tanh") if is_gelu else silu(gate)) * up


@triton.jit
def _gate_mul(
    gate_up_ptr,
    act_ptr,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GELU: tl.constexpr,
    EARLY: tl.constexpr,
):
    let_next_begin(EARLY)
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    row = gate_up_ptr + token * stride + column
    gate = tl.load(row, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + WIDTH, mask=inside, other=0.0).to(tl.float32)
    act = gated(gate, up, act_ptr.dtype.element_ty, GELU)
    tl.store(act_ptr + token * WIDTH + column, act, mask=inside)
