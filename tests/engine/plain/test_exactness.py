"""The engine answers as the plain model does, whatever the chunks, blocks and neighbours."""

import random
from typing import cast

import pytest
import torch
from torch import nn

from server.engine.launched_step import NOT_FINITE
from server.engine.plain import attention
from server.engine.sequence import Chunk
from server.errors import UnsupportedModel
from tests.engine.driving import generate, make_engine, make_sequence, random_prompt
from tests.models import KINDS, VOCAB, Kind, tiny_model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chunk", "block_tokens"), [(1, 1), (7, 5), (64, 16), (3, 64)])
def test_a_base_request_equals_generate(kind: Kind, chunk: int, block_tokens: int) -> None:
    model = tiny_model(kind)
    prompt = random_prompt(random.Random(3), 41, VOCAB)  # longer than Mistral's window of 24
    expected = generate(model, prompt, 24)
    engine = make_engine(model, block_tokens=block_tokens)
    assert engine.finish(make_sequence(0, prompt, max_tokens=24), chunk) == expected
    assert engine.pool.num_free == engine.pool.num_total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_answers_do_not_depend_on_neighbours(kind: Kind, seed: int) -> None:
    rng = random.Random(f"{kind}, {seed}")
    model = tiny_model(kind, seed=seed)
    prompts = [random_prompt(rng, rng.randint(1, 90), VOCAB) for _ in range(9)]
    expected = [generate(model, prompt, 12) for prompt in prompts]
    engine = make_engine(model, block_tokens=rng.choice([1, 3, 8, 16]))
    sequences = [make_sequence(i, prompt) for i, prompt in enumerate(prompts)]
    preempted = engine.finish_mixed(sequences, rng)
    assert [it.output for it in sequences] == expected
    assert preempted > 0
    assert engine.pool.num_free == engine.pool.num_total


def test_windows_that_differ_by_layer() -> None:
    model = tiny_model(
        "qwen2",
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=10,
        max_window_layers=1,
    )
    assert set(model.config.layer_types) == {"full_attention", "sliding_attention"}
    prompt = random_prompt(random.Random(0), 33, VOCAB)
    expected = generate(model, prompt, 20)
    assert make_engine(model).finish(make_sequence(0, prompt, max_tokens=20), 6) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_plain_model(dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    prompt = random_prompt(random.Random(1), 50, VOCAB)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    sequence = make_sequence(0, prompt, max_tokens=1, prompt_logprobs=True)
    engine = make_engine(model)
    engine.finish(sequence, 13)
    scores = [score for output in engine.outputs[0] for score in output.prompt_logprobs]
    got = torch.tensor([score.logprob for score in scores])
    plain = expected[:-1].gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert (got - plain).abs().max() < 0.05 * plain.abs().mean()


def test_a_row_that_overflows_fails_alone_and_spoils_no_block() -> None:
    model = tiny_model("llama")
    prompt = random_prompt(random.Random(5), 20, VOCAB - 1)
    expected = generate(model, prompt, 6)
    engine = make_engine(model, memory_mb=1, block_tokens=64)
    with torch.no_grad():
        cast(nn.Embedding, model.get_input_embeddings()).weight[VOCAB - 1] = torch.nan
    broken = make_sequence(0, [VOCAB - 1] * 30)
    good = make_sequence(1, prompt, max_tokens=6)
    bad, fine = engine.step([Chunk(broken, 30), Chunk(good, 20)])
    assert bad.failure == NOT_FINITE and bad.token_id is None and bad.logprob is None
    assert fine.failure is None and fine.token_id == expected[0]
    engine.pool.free(broken)  # the next sequence takes its blocks over
    heir = make_sequence(2, prompt, max_tokens=6)
    assert engine.finish(heir) == expected
    assert engine.finish(good) == expected


def test_an_empty_step_gives_nothing() -> None:
    assert make_engine(tiny_model("llama")).runner.step([]) == []


def test_a_slot_without_adapters_is_refused() -> None:
    engine = make_engine(tiny_model("llama"))
    with pytest.raises(ValueError, match="no adapters"):
        engine.step([Chunk(make_sequence(0, [1, 2], slot=3), 2)])


def test_the_model_does_not_run_behind_the_engines_back() -> None:
    model = tiny_model("llama")
    make_engine(model)
    assert model.config._attn_implementation == attention.NAME
    with pytest.raises(UnsupportedModel):
        model(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rotary_embeddings_that_follow_the_batch_are_refused(rope_type: str) -> None:
    rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 1e4}
    if rope_type == "longrope":
        rope |= {
            "short_factor": [1.0] * 6,
            "long_factor": [2.0] * 6,
            "original_max_position_embeddings": 64,
        }
    with pytest.raises(UnsupportedModel, match=rope_type):
        make_engine(tiny_model("llama", rope_parameters=rope))
