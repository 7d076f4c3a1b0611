"""The operations between the matrix products of a Llama's layer, in torch. Knows no model.

`server.training.kernels` has the same operations as kernels, with their own backward passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu


@dataclass(frozen=True)
class LayerOps:
    """These operations, in one form or the other."""

    add_rms_norm: Callable[[Tensor, Tensor | None, Tensor, float], tuple[Tensor, Tensor]]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gate_mul: Callable[[Tensor, Tensor, bool], Tensor]


def add_rms_norm(
    h: Tensor, delta: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add, then normalise: h + delta, and that over its root mean square, times `weight`: h', x.

    Statistics are float32; the quotient is rounded to `weight`'s dtype before it meets `weight`: as
    in transformers' LlamaRMSNorm, or as in its Gemma3RMSNorm if `weight` is float32.

    Args:
        h, delta: [tokens, hidden]; None: nothing is added.
        weight: [hidden] of h's dtype or float32, frozen.
    """
    h = h if delta is None else h + delta
    wide = h.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return h, (weight * wide.to(weight.dtype)).to(h.dtype)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k turned by their positions, the halves of a head as transformers pairs them.

    Args:
        q, k: [tokens, heads * D] and [tokens, kv_heads * D].
        cos, sin: [positions, D]; token t stands at position t % positions.
    """
    turned = []
    for x in (q, k):
        heads = x.view(-1, len(cos), x.shape[1] // cos.shape[1], cos.shape[1])
        first, second = heads.chunk(2, dim=-1)
        across = torch.cat((-second, first), dim=-1)
        turned.append((heads * cos[:, None] + across * sin[:, None]).view(x.shape))
    return turned[0], turned[1]


def gate_mul(gate: Tensor, up: Tensor, is_gelu: bool) -> Tensor:
    """silu(gate) * up, or with GELU in its tanh form."""
    return (gelu(gate, approximate="tanh") if is_gelu else silu(gate)) * up


PLAIN: Final = LayerOps(add_rms_norm, rotate, gate_mul)
