"""Blocks are handed out once, taken back whole, and sized from megabytes."""

import random

import pytest

from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.kv_cache import KVCache
from server.engine.sequence import SamplingParams, check_token_ids
from server.errors import InvalidRequest
from tests.engine.driving import make_sequence
from tests.models import VOCAB, tiny_model


def test_no_block_has_two_holders_and_none_is_lost() -> None:
    rng = random.Random(0)
    pool = BlockPool(20, 4)
    sequences = [make_sequence(i, [1]) for i in range(6)]
    refused = 0
    for _ in range(500):
        sequence = rng.choice(sequences)
        tokens = rng.randint(1, 40)
        before, need = list(sequence.blocks), pool.need(sequence, tokens)
        if rng.random() < 0.3:
            pool.free(sequence)
            assert not sequence.blocks and sequence.num_computed == 0
        elif need > pool.num_free:
            assert not pool.grow(sequence, tokens)
            assert sequence.blocks == before
            refused += 1
        else:
            assert pool.grow(sequence, tokens)
            assert sequence.blocks[: len(before)] == before
            assert len(sequence.blocks) == len(before) + need
            assert len(sequence.blocks) * 4 >= tokens
        held = [block for it in sequences for block in it.blocks]
        assert len(held) == len(set(held)) == pool.num_total - pool.num_free
    assert refused > 10


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="holds nothing: give at least one block"):
        BlockPool(0, 16)


def test_memory_is_what_was_asked_for() -> None:
    base = BaseModel.of(tiny_model("llama"), "tiny")
    cache = KVCache(base, memory_mb=3, block_tokens=8)
    taken = sum(tensor.nbytes for layer in cache.layers for tensor in layer)
    block = taken // (cache.num_blocks + 1)  # one more than asked for, for padding
    assert 0 <= (3 << 20) - block * cache.num_blocks < block
    with pytest.raises(ValueError, match="raise kv_memory_mb"):
        KVCache(base, memory_mb=1, block_tokens=1 << 20)


def test_more_memory_than_there_is_is_refused() -> None:
    base = BaseModel.of(tiny_model("llama"), "tiny")
    with pytest.raises(ValueError, match="lower it"):
        KVCache(base, memory_mb=1 << 36, block_tokens=16)


def test_tokens_of_prompt_and_answer() -> None:
    sequence = make_sequence(0, [1, 2, 3])
    sequence.output = [4, 5]
    for start in range(6):
        for stop in range(start, 6):
            assert sequence.tokens(start, stop) == [1, 2, 3, 4, 5][start:stop]
    sequence.num_computed = 3
    assert sequence.remaining == 2
    assert sequence.remaining == 2


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ([], SamplingParams(), "prompt"),
        ([1, VOCAB], SamplingParams(), "prompt"),
        ([-1], SamplingParams(), "prompt"),
        ([1], SamplingParams(logit_bias=((VOCAB, 1.0),)), "logit_bias"),
    ],
)
def test_unknown_token_ids_are_refused(
    prompt: list[int], params: SamplingParams, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_token_ids(prompt, params, VOCAB)
    assert caught.value.param == field
    check_token_ids([0, VOCAB - 1], SamplingParams(logit_bias=((0, 1.0),)), VOCAB)
