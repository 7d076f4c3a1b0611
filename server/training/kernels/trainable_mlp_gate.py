"""The gate of an MLP, forward and backward in one kernel each. Knows no weights."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from server.kernels.gating import gated, steepness

_BLOCK = 2048


def gate_mul(gate: Tensor, up: Tensor, is_gelu: bool) -> Tensor:
    """See `server.training.run.layer_ops.gate_mul`, its reference; both contiguous."""
    # silu is computed in float32 and rounded before it is multiplied by `up`, as in torch.
    out: Tensor = _GateMul.apply(gate, up, is_gelu)  # type: ignore[no-untyped-call]
    return out


class _GateMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, is_gelu: bool) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.is_gelu = is_gelu
        out = torch.empty_like(gate)
        _forward[_grid(gate)](gate, up, out, gate.numel(), GELU=is_gelu, BLOCK=_BLOCK, num_warps=8)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        g_gate, g_up = torch.empty_like(gate), torch.empty_like(up)
        _backward[_grid(gate)](
            g.contiguous(), gate, up, g_gate, g_up, gate.numel(),
            GELU=ctx.is_gelu, BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
        return g_gate, g_up, None


def _grid(x: Tensor) -> tuple[int]:
    return (-(-x.numel() // _BLOCK),)


@triton.jit
def _forward(gate_ptr, up_ptr, out_ptr, entries, GELU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < entries
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, gated(gate, up, out_ptr.dtype.element_ty, GELU), mask=inside)


@triton.jit
def _backward(
    g_ptr,
    gate_ptr,
    up_ptr,
    g_gate_ptr,
    g_up_ptr,
    entries,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < entries
    dtype = g_up_ptr.dtype.element_ty
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-steepness(gate, GELU)))
    slope = gate * (1.0 - sigmoid)
    if GELU:  # the derivative of `steepness`
        slope *= 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * gate * gate)
    g_up = g * (gate * sigmoid)
    g_gate = g * up * sigmoid * (1.0 + slope)
    tl.store(g_up_ptr + at, g_up.to(dtype), mask=inside)
    tl.store(g_gate_ptr + at, g_gate.to(dtype), mask=inside)
