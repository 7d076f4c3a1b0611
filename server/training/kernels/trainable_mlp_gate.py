"""The gate of Llama's MLP, forward and backward in one kernel each. Knows no weights."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 2048


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `server.training.run.layer_ops.silu_mul`, its reference; both contiguous."""
    # silu is computed in float32 and rounded before it is multiplied by `up`, as in torch.
    out: Tensor = _SiluMul.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        _forward[_grid(gate)](gate, up, out, gate.numel(), BLOCK=_BLOCK, num_warps=8)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        g_gate, g_up = torch.empty_like(gate), torch.empty_like(up)
        _backward[_grid(gate)](
            g.contiguous(), gate, up, g_gate, g_up, gate.numel(), BLOCK=_BLOCK, num_warps=8
        )
        return g_gate, g_up


def _grid(x: Tensor) -> tuple[int]:
    return (-(-x.numel() // _BLOCK),)


@triton.jit
def _forward(gate_ptr, up_ptr, out_ptr, entries, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < entries
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    act = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + at, (act * up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(g_ptr, gate_ptr, up_ptr, g_gate_ptr, g_up_ptr, entries, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < entries
    dtype = g_up_ptr.dtype.element_ty
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    g_up = g * (gate * sigmoid)
    g_gate = g * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(g_up_ptr + at, g_up.to(dtype), mask=inside)
    tl.store(g_gate_ptr + at, g_gate.to(dtype), mask=inside)
