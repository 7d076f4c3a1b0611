"""Attention of a step's chunks of several tokens, in one call. Knows no weights, no sampling."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from server.engine.kv_cache import KVCache
from server.engine.plain.attention import reference_attention
from server.engine.sequence import Chunk


@dataclass(frozen=True, eq=False)
class PackedPrompts:
    """Chunks packed one behind the other, and the keys that each of them sees.

    Attributes:
        query_starts, key_starts: int32 [chunks + 1], running sums of their lengths.
        keys_at: int64 [all keys], their places in the cache; None: every chunk begins its sequence,
            so that the keys are the step's own.
    """

    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int
    keys_at: Tensor | None

    @classmethod
    def of(cls, chunks: list[Chunk], cache: KVCache) -> "PackedPrompts":
        queries = [chunk.length for chunk in chunks]
        keys = [chunk.sequence.num_computed + chunk.length for chunk in chunks]
        starts = torch.tensor(
            [[0, *accumulate(queries)], [0, *accumulate(keys)]], dtype=torch.int32
        ).to(cache.device, non_blocking=True)
        keys_at = None if queries == keys else _places(chunks, keys, cache)
        return cls(starts[0], starts[1], max(queries), max(keys), keys_at)


def _places(chunks: list[Chunk], keys: list[int], cache: KVCache) -> Tensor:
    size = cache.block_tokens
    offsets = torch.arange(size)
    places = [
        (torch.tensor(chunk.sequence.blocks)[:, None] * size + offsets).flatten()[:count]
        for chunk, count in zip(chunks, keys, strict=True)
    ]
    return torch.cat(places).to(cache.device, non_blocking=True)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prompts: PackedPrompts,
    cache: KVCache,
    layer: int,
    *,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Each token attends to its own sequence up to itself.

    Args:
        q: [tokens, heads * head_dim]; k, v: [tokens, kv_heads * head_dim], already in the cache.
        window: how many tokens back a token sees, itself included; None: all.

    Returns: [tokens, heads * head_dim].
    """
    queries = q.unflatten(1, (-1, cache.head_dim))
    if prompts.keys_at is None:
        keys, values = (it.unflatten(1, (-1, cache.head_dim)) for it in (k, v))
    else:
        keys, values = cache.gather(layer, prompts.keys_at)
    run = _flash if q.is_cuda and q.dtype != torch.float32 else plain_attention
    return run(queries, keys, values, prompts, scaling, window).flatten(1)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, prompts: PackedPrompts, scaling: float, window: int | None
) -> Tensor:
    """torch's own FlashAttention over sequences of any lengths (Dao, arXiv 2307.08691).

    torch.nn.attention.varlen offers neither a scale nor grouped heads on torch 2.11; the operation
    beneath it has both. Its causal mask lines up the last query with the last key.
    """
    operation: Any = torch.ops.aten._flash_attention_forward
    output: Tensor = operation(
        q,
        k,
        v,
        prompts.query_starts,
        prompts.key_starts,
        prompts.longest_query,
        prompts.longest_key,
        0.0,
        True,
        False,
        scale=scaling,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )[0]
    return output


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, prompts: PackedPrompts, scaling: float, window: int | None
) -> Tensor:
    """The same, one sequence after the other."""
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    queries, keys = prompts.query_starts.tolist(), prompts.key_starts.tolist()
    for i in range(len(queries) - 1):
        own, seen = slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])
        length = own.stop - own.start
        # Queries of the whole sequence: only the last ones are kept.
        padded = q.new_zeros(seen.stop - seen.start, *q.shape[1:])
        padded[-length:] = q[own]
        output[own] = reference_attention(
            padded.transpose(0, 1),
            k[seen].transpose(0, 1),
            v[seen].transpose(0, 1),
            scaling=scaling,
            sliding_window=window,
        )[-length:]
    return output
