"""Popular types of models: each is served as transformers runs it, or refused with the reason."""

from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from server.errors import UnsupportedModel
from tests.engine.driving import make_engine
from tests.models import VOCAB

PAGE: Final = Path(__file__).parents[3] / "docs/models.md"
_SHAPE: Final = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 2,  # the default of some types is above this vocabulary
}
_GROUPED: Final = {"num_key_value_heads": 2}
_WIDE: Final = {**_GROUPED, "head_dim": 16}
_EXPERTS: Final = {**_WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

SERVED: Final[dict[str, dict[str, Any]]] = {
    "arcee": _GROUPED,
    "cohere": _GROUPED,
    "cohere2": _GROUPED,
    "ernie4_5": _WIDE,
    "exaone4": _GROUPED,
    "gemma": _WIDE,
    "glm": _WIDE,
    "glm4": _WIDE,
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 8},
    "granite": _GROUPED,
    "granitemoe": _GROUPED,
    "helium": _WIDE,
    "mixtral": _GROUPED,
    "nemotron": _GROUPED,
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED,
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 64},
    "phi3": _GROUPED,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": _EXPERTS,
    "seed_oss": _WIDE,
    "smollm3": _GROUPED,
    "stablelm": _GROUPED,
    "starcoder2": _GROUPED,
}
_OWN_CODE: Final = "computes attention in code of its own"
_LAYERS: Final = "the engine runs full and sliding-window attention only"
REFUSED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "bloom": ({}, _OWN_CODE),
    "falcon": ({}, _OWN_CODE),
    "falcon_h1": (_GROUPED, f"hybrid layers: {_LAYERS}"),
    "gemma2": (_WIDE, "does not have: softcap"),
    "gpt_neo": ({"attention_types": [[["global", "local"], 1]]}, _OWN_CODE),
    "gpt_oss": ({**_WIDE, "num_local_experts": 4}, "does not have: s_aux"),
    "jamba": (_GROUPED, f"linear_attention layers: {_LAYERS}"),
    "llama4_text": (
        {**_GROUPED, "attention_chunk_size": 8},
        f"chunked_attention layers: {_LAYERS}",
    ),
    "mamba": ({}, f"linear_attention layers: {_LAYERS}"),
    "mpt": ({"d_model": 64, "n_heads": 4, "n_layers": 2}, _OWN_CODE),
    "qwen3_next": (_GROUPED, f"linear_attention layers: {_LAYERS}"),
    "recurrent_gemma": (_GROUPED, f"linear_attention layers: {_LAYERS}"),
    "xglm": ({}, _OWN_CODE),
}


def _model(kind: str, fields: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **{**_SHAPE, **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:  # else positions and masks hardly show
                    parameter.normal_(std=0.2)
    model.eval()
    return model


@pytest.mark.parametrize("kind", SERVED)
def test_a_type_is_served_exactly(kind: str) -> None:
    """The engine compares its logits with the model's own when it starts."""
    make_engine(_model(kind, SERVED[kind]))
    assert f"`{kind}`" in PAGE.read_text("utf-8")


@pytest.mark.parametrize("kind", REFUSED)
def test_a_type_is_refused_with_its_reason(kind: str) -> None:
    fields, reason = REFUSED[kind]
    with pytest.raises(UnsupportedModel, match=reason):
        make_engine(_model(kind, fields))
    assert f"`{kind}`" in PAGE.read_text("utf-8")
