"""Paged attention against its plain reference, on random shapes and schedules."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.kv_cache import KVCache
from server.engine.plain.attention import attending, paged_attention, reference_attention
from server.engine.plain.token_layout import Layout
from server.engine.sequence import Chunk, Sequence
from server.errors import UnsupportedModel
from tests.engine.driving import make_sequence
from tests.models import tiny_model


class Rig:
    """One layer of attention over random queries, keys and values, known for every sequence."""

    def __init__(self, rng: random.Random, heads: int, kv_heads: int, lengths: list[int]) -> None:
        self.block_tokens = rng.choice([1, 2, 5, 16])
        width = 8 * heads
        model = tiny_model(
            "llama", hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv_heads
        )
        base = BaseModel.of(model, "tiny")
        self.cache = KVCache(base, memory_mb=2, block_tokens=self.block_tokens)
        self.pool = BlockPool(self.cache.num_blocks, self.block_tokens)
        self.layer: Any = SimpleNamespace(layer_idx=1)
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
        self.tensors = [
            tuple(torch.randn(n, length, 8, generator=generator) for n in (heads, *[kv_heads] * 2))
            for length in lengths
        ]
        self.sequences = [make_sequence(i, [0] * length) for i, length in enumerate(lengths)]

    def step(self, chunks: list[Chunk], window: int | None) -> dict[Sequence, Tensor]:
        for chunk in chunks:
            assert self.pool.grow(chunk.sequence, chunk.sequence.num_computed + chunk.length)
        layout = Layout(chunks, self.cache)
        parts = []
        for chunk in layout.chunks:
            start = chunk.sequence.num_computed
            tensors = self.tensors[chunk.sequence.seq_id]
            parts.append([tensor[:, start : start + chunk.length] for tensor in tensors])
        query, key, value = (torch.cat(it, dim=1)[None] for it in zip(*parts, strict=True))
        with attending(layout):
            output, _ = paged_attention(
                self.layer, query, key, value, None, scaling=0.3, sliding_window=window
            )
        rows = zip(layout.chunks, layout.starts, strict=True)
        return {chunk.sequence: output[0, at : at + chunk.length] for chunk, at in rows}


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    heads, kv_heads = rng.choice([(4, 4), (6, 2), (8, 1), (1, 1)])
    window = rng.choice([None, 1, 7, 40])
    rig = Rig(rng, heads, kv_heads, [rng.randint(1, 70) for _ in range(7)])
    while running := [it for it in rig.sequences if it.remaining]:
        chosen = rng.sample(running, rng.randint(1, len(running)))
        chunks = [Chunk(it, rng.choice([1, rng.randint(1, it.remaining)])) for it in chosen]
        outputs = rig.step(chunks, window)
        for chunk in chunks:
            sequence = chunk.sequence
            query, key, value = rig.tensors[sequence.seq_id]
            expected = reference_attention(query, key, value, scaling=0.3, sliding_window=window)
            start = sequence.num_computed
            torch.testing.assert_close(
                outputs[sequence], expected[start : start + chunk.length], rtol=1e-4, atol=1e-5
            )
            sequence.num_computed += chunk.length


def test_skewed_contexts_are_gathered_apart() -> None:
    rig = Rig(random.Random(0), 6, 2, [3, 4, 60, 64, 500])
    for sequence in rig.sequences:
        assert rig.pool.grow(sequence, sequence.remaining)
        sequence.num_computed = sequence.remaining - 1
    layout = Layout([Chunk(it, 1) for it in rig.sequences], rig.cache)
    reads = layout.reads(None)
    assert [read.sequences for read in reads] == [1, 2, 2]
    assert layout.reads(None) is reads
    assert sum(read.sequences * read.num_keys for read in reads) < 1.4 * (3 + 4 + 60 + 64 + 500)


@pytest.mark.parametrize("asks", [{"softcap": 30.0}, {"s_aux": torch.ones(4)}, {"dropout": 0.1}])
def test_what_would_change_the_scores_is_refused(asks: dict[str, Any]) -> None:
    rig = Rig(random.Random(0), 4, 4, [3])
    chunk = Chunk(rig.sequences[0], 3)
    assert rig.pool.grow(chunk.sequence, 3)
    query, key, value = (it[None] for it in rig.tensors[0])
    layout, names = Layout([chunk], rig.cache), "|".join(asks)
    with attending(layout), pytest.raises(UnsupportedModel, match=f"does not have: ({names})"):
        paged_attention(rig.layer, query, key, value, None, **asks)


def test_a_call_outside_of_a_step_is_refused() -> None:
    rig = Rig(random.Random(0), 4, 4, [3])
    query, key, value = (it[None] for it in rig.tensors[0])
    with pytest.raises(UnsupportedModel, match="outside of a step"):
        paged_attention(rig.layer, query, key, value, None)


def test_layers_of_another_shape_are_refused() -> None:
    rig = Rig(random.Random(0), 4, 4, [3])
    chunk = Chunk(rig.sequences[0], 3)
    assert rig.pool.grow(chunk.sequence, 3)
    query, key, value = (it[None] for it in rig.tensors[0])
    layout = Layout([chunk], rig.cache)
    with attending(layout), pytest.raises(UnsupportedModel, match="in every layer"):
        paged_attention(rig.layer, query, key, value[..., :4], None)
