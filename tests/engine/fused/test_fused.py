"""The fused decoder against transformers' own forward: any schedule, any company of adapters."""

import random
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from server.bases.model import BaseModel
from server.engine.blocks import BlockPool
from server.engine.fused.decoder import FusedDecoder
from server.engine.fused.fused_forward import FusedForward
from server.engine.kv_cache import KVCache
from server.engine.runner import Runner
from tests.engine.driving import Engine, generate, make_sequence, random_prompt
from tests.models import VOCAB, Kind, tiny_gemma_with_images, tiny_model

WIDE: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, "num_hidden_layers": 1}
TWO_TYPES: dict[str, Any] = {"num_hidden_layers": 2, "sliding_window": 5}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def fused_engine(base: BaseModel, block_tokens: int = 16) -> Engine:
    decoder = FusedDecoder(base)
    kv = KVCache(base, memory_mb=4, block_tokens=block_tokens)
    forward = FusedForward(decoder, None, kv, None)
    return Engine(Runner(base, None, kv, forward), BlockPool(kv.num_blocks, block_tokens))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
def test_answers_equal_generate_in_any_company(kind: Kind) -> None:
    rng = random.Random(kind)
    model = tiny_model(kind, **WIDE | (TWO_TYPES if kind == "gemma3_text" else {}))
    prompts = [random_prompt(rng, length, VOCAB) for length in (1, 3, 11)]
    expected = [generate(model, prompt, 2) for prompt in prompts]
    torch.nn.Module.to(model, DEVICE)
    engine = fused_engine(BaseModel.of(model, "tiny"), rng.choice([3, 8]))
    sequences = [make_sequence(i, prompt, max_tokens=2) for i, prompt in enumerate(prompts)]
    engine.finish_mixed(sequences, rng)
    assert [it.output for it in sequences] == expected


def test_a_decoder_beside_an_image_tower_runs_too() -> None:
    prompt = [5, 6, 7]
    expected = generate(tiny_model("gemma3_text"), prompt, 2)
    model = tiny_gemma_with_images()
    torch.nn.Module.to(model, DEVICE)
    engine = fused_engine(BaseModel.of(model, "tiny"))
    assert engine.finish(make_sequence(0, prompt, max_tokens=2)) == expected


def test_ids_without_a_token_are_never_generated() -> None:
    model = tiny_model("llama", **WIDE)
    (expected,) = generate(model, [5, 6], 1)
    torch.nn.Module.to(model, DEVICE)
    nameless = [expected, *range(VOCAB // 2, VOCAB)]
    engine = fused_engine(BaseModel.of(model, "tiny").without(nameless))
    for seed, temperature in enumerate([0.0, 2.0]):
        said = engine.finish(
            make_sequence(seed, [5, 6], max_tokens=2, temperature=temperature, seed=seed + 1)
        )
        assert len(said) == 2 and not set(said) & set(nameless)


def test_the_model_itself_still_runs_over_the_joined_weights() -> None:
    model = tiny_model("llama", **WIDE)
    tokens = torch.arange(1, 20)[None]
    before = model(tokens).logits
    FusedDecoder(BaseModel.of(model, "tiny"))
    assert torch.equal(model(tokens).logits, before)
    qkv = [getattr(model.model.layers[0].self_attn, f"{name}_proj").weight for name in "qkv"]
    assert len({weight.untyped_storage().data_ptr() for weight in qkv}) == 1
