"""Tiny random causal models, one per architecture that the server promises to run."""

from typing import Any, Literal, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from server.bases.model import BaseModel

Kind = Literal["llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "mistral", "phi"]
KINDS: tuple[Kind, ...] = get_args(Kind)

VOCAB = 300
BOS, EOS = 1, 2

_TOKENS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None}
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_SHAPES: dict[Kind, dict[str, Any]] = {
    "llama": _SHAPE,
    "qwen2": _SHAPE,
    "qwen3": {**_SHAPE, "head_dim": 16},
    # One layer of each type, the gains of whose norms are 1 + weight.
    "gemma3_text": {
        **_SHAPE,
        "head_dim": 16,
        "query_pre_attn_scalar": 20,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mistral": {**_SHAPE, "sliding_window": 24},
    "phi": _SHAPE,
}


def tiny_model(
    kind: Kind, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A random model of `kind` in evaluation mode on the CPU; `overrides` go to its config.

    Every parameter is drawn, biases and norms too, so that a lost bias or a swapped norm shows;
    the spread is large enough that greedy answers vary. The caller's random state is untouched.
    """
    config = AutoConfig.for_model(kind, **{**_TOKENS, **_SHAPES[kind], **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_gain = ("norm" in name or "ln_" in name) and name.endswith("weight")
                spread = 0.1 if parameter.ndim == 1 else 0.2
                parameter.copy_(
                    torch.randn(parameter.shape) * spread + float(is_gain and kind != "gemma3_text")
                )
    model.eval()
    return model


def tiny_base(kind: Kind, **overrides: Any) -> BaseModel:
    """`tiny_model` as the server holds a base model."""
    return BaseModel.of(tiny_model(kind, **overrides), f"tiny-{kind}")


def tiny_gemma_with_images() -> PreTrainedModel:
    """`tiny_model("gemma3_text")` as the decoder of a model that reads images too."""
    text = tiny_model("gemma3_text")
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text.config.to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.get_decoder().load_state_dict(text.get_decoder().state_dict())
    model.eval()
    return model
