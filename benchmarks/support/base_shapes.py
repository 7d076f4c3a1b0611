"""Base models of real shapes with random weights. They cost what trained ones cost."""

from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from server.bases.base_files import load_base
from server.bases.model import BaseModel

_LLAMA: Final[dict[str, Any]] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
    "max_position_embeddings": 8192,
}
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "1b": {**_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {**_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "gemma3-1b": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "tie_word_embeddings": True,
    },
    # To try a script, in seconds on a CPU. Its figures say nothing.
    "tiny": {
        **_LLAMA,
        "vocab_size": 300,
        "num_key_value_heads": 2,
        "num_attention_heads": 4,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
    },
}


def random_model(shape: str, device: str) -> PreTrainedModel:
    """A model of one of `SHAPES` made on `device`, bfloat16 (float32 on a CPU); small weights, so
    that nothing overflows."""
    config = AutoConfig.for_model(**SHAPES[shape], attn_implementation="sdpa")
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    return model


def base_of(name: str, device: str) -> BaseModel:
    """One of `SHAPES` with random weights, or what `load_base` makes of a name."""
    if name in SHAPES:
        return BaseModel.of(random_model(name, device), name, fingerprint=name)
    return load_base(name, device=device)
