"""Attention of a half-precision base on a CPU, in training: computed in float32.

Torch's backward pass of bfloat16 attention takes fourteen times as long on a CPU as that of float32
(108 ms against 7.6 for a layer of SmolLM2-135M). The products around it stay in the base's dtype.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from server.bases.model import BaseModel

_NAME: Final = "verandah_float32"
_TORCH: Final = "sdpa"


@contextmanager
def wide_attention(base: BaseModel) -> Iterator[None]:
    """Within, attention of `base` is in float32 if it is a half-precision model on a CPU."""
    config = base.model.config
    own = base.config._attn_implementation
    if base.device.type != "cpu" or base.dtype == torch.float32 or own != _TORCH:
        yield
        return
    # Here, because it imports the whole of transformers' generation, which serving does without.
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(_NAME, float32_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    config._attn_implementation = _NAME  # of its parts too
    try:
        yield
    finally:
        config._attn_implementation = own


def float32_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention by torch, in float32. The result has the dtype of `query`.

    Args:
        query: [rows, heads, tokens, head_dim].
        key, value: [rows, kv_heads, tokens, head_dim].

    Returns: [rows, tokens, heads, head_dim], and None for the weights.
    """
    wide = (query.float(), key.float(), value.float())
    output, _ = sdpa_attention_forward(module, *wide, attention_mask, **others)
    return output.to(query.dtype), None


def reference_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """`float32_attention` of a causal layer, written plainly."""
    shared = query.shape[1] // key.shape[1]
    key, value = (it.float().repeat_interleave(shared, dim=1) for it in (key, value))
    scores = query.float() @ key.transpose(2, 3) * scaling
    later = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).to(query.dtype)
