"""Attention over paged keys and values, called from inside transformers' models.

The model runs on one flat batch of all the tokens of a step; only attention separates the
sequences. Knows no weights and no sampling.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from server.engine.plain.token_layout import AttentionCall, Layout
from server.errors import UnsupportedModel

NAME = "verandah_paged"

# Arguments of models that do not change the scores, or were applied before.
_HARMLESS = frozenset(
    {"position_ids", "use_cache", "output_attentions", "cache_position", "output_router_logits"}
)
_STEP: Final[ContextVar[Layout | None]] = ContextVar("step", default=None)


def register() -> None:
    """Make `NAME` known to transformers, for `model.set_attn_implementation`."""
    AttentionInterface.register(NAME, paged_attention)


@contextmanager
def attending(layout: Layout) -> Iterator[None]:
    """Within, calls of the model on this thread are a step that is laid out so.

    An argument of the call would not do: the layers of some models drop arguments they do not know.
    """
    token = _STEP.set(layout)
    try:
        yield
    finally:
        _STEP.reset(token)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Store this step's keys and values, then let each token attend to its own sequence.

    Args:
        query: [1, heads, tokens, head_dim].
        key, value: [1, kv_heads, tokens, head_dim].
        sliding_window: how many tokens back a token sees, itself included; None: all.

    Returns: [1, tokens, heads, head_dim], and None for the weights.

    Raises:
        UnsupportedModel: the model asks for something that would change the scores, or runs outside
            of `attending`.
    """
    needs = sorted(k for k, v in others.items() if v is not None and k not in _HARMLESS)
    if attention_mask is not None:
        needs.append("a mask of its own")
    if dropout:
        needs.append("dropout")
    if needs:
        raise UnsupportedModel(
            f"{type(module).__name__} needs attention that this engine does not have: "
            f"{', '.join(needs)}"
        )
    paged = _STEP.get()
    if paged is None:
        raise UnsupportedModel(f"{type(module).__name__} runs outside of a step of the engine")
    layer = module.layer_idx
    assert isinstance(layer, int)
    paged.cache.write(layer, key, value, paged.write_at)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    _, heads, tokens, head_dim = query.shape
    # Heads that share keys are neighbours: [kv_heads, heads of each, tokens, head_dim].
    queries = query.view(key.shape[1], -1, tokens, head_dim)
    output = query.new_empty(tokens, heads, head_dim)
    for read in paged.reads(sliding_window):
        keys, values = paged.cache.read(layer, read.blocks, read.sequences)
        attend = _attend_decodes if read.decodes else _attend_prompt
        output[read.rows] = attend(queries[:, :, read.rows], keys, values, read, scaling)
    return output[None], None


def _attend_decodes(
    queries: Tensor, keys: Tensor, values: Tensor, read: AttentionCall, scaling: float
) -> Tensor:
    """One query token for each sequence. Returns: [sequences, heads, head_dim].

    Args:
        queries: [kv_heads, heads of each, sequences, head_dim].
        keys, values: [kv_heads, sequences, num_keys, head_dim].
    """
    # Heads that share keys are queries of one sequence here: no key is repeated in memory.
    output = scaled_dot_product_attention(
        queries.transpose(1, 2), keys, values, attn_mask=read.mask, scale=scaling
    )
    return output.transpose(0, 1).flatten(1, 2)


def _attend_prompt(
    queries: Tensor, keys: Tensor, values: Tensor, read: AttentionCall, scaling: float
) -> Tensor:
    """Many query tokens of one sequence. Returns: [tokens, heads, head_dim].

    Args:
        queries: [kv_heads, heads of each, tokens, head_dim].
        keys, values: [kv_heads, 1, at least num_keys, head_dim].
    """
    # Heads that share keys see them through a stride of 0.
    shape = (*queries.shape[:2], read.num_keys, queries.shape[-1])
    output = scaled_dot_product_attention(
        queries,
        keys[:, :, : read.num_keys].expand(shape),
        values[:, :, : read.num_keys].expand(shape),
        attn_mask=read.mask,
        is_causal=read.mask is None,
        scale=scaling,
    )
    return output.permute(2, 0, 1, 3).flatten(1, 2)


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
) -> Tensor:
    """What `paged_attention` computes for one whole sequence, written plainly.

    Args:
        query: [heads, tokens, head_dim]; key, value: [kv_heads, tokens, head_dim].

    Returns: [tokens, heads, head_dim].
    """
    heads, tokens, _ = query.shape
    key, value = (it.repeat_interleave(heads // it.shape[0], dim=0) for it in (key, value))
    scores = query @ key.transpose(1, 2) * scaling
    back = torch.arange(tokens)[:, None] - torch.arange(tokens)
    hidden = (back < 0) | (back >= (sliding_window or tokens))
    weights = scores.masked_fill(hidden.to(scores.device), -torch.inf).softmax(dim=-1)
    return (weights @ value).transpose(0, 1)
