"""The activation of an MLP's gate, for all kernels that gate. Knows no weights."""

import triton
import triton.language as tl


@triton.jit
def steepness(gate, GELU: tl.constexpr):
    """The argument t of the sigmoid in `gate * sigmoid(t)`: SiLU's, or that of GELU's tanh form."""
    t = gate
    if GELU:
        # 2 sqrt(2 / pi) (x + 0.044715 x^3): Hendrycks and Gimpel, arXiv 1606.08415.
        t = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return t


@triton.jit
def gated(gate, up, dtype, GELU: tl.constexpr):
    """activation(gate) * up of float32 sums, rounded where separate kernels would store them."""
    gate = gate.to(dtype).to(tl.float32)
    gate = (gate / (1.0 + tl.exp(-steepness(gate, GELU)))).to(dtype).to(tl.float32)
    return (gate * up.to(dtype).to(tl.float32)).to(dtype)
