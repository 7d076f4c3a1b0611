"""Base models of real shapes with random weights. They cost what trained ones cost."""

from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from server.bases.base_files import load_base
from server.bases.model import BaseModel

_LLAMA: Final[dict[str, Any]] = {
    "vocab_size": 32000,
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
    "max_position_embeddings": 8192,
}
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "1b": {**_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {**_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
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


def random_llama(shape: str, device: str) -> PreTrainedModel:
    """A Llama of one of `SHAPES` made on `device`, bfloat16 (float32 on a CPU); small weights, so
    that nothing overflows."""
    config = AutoConfig.for_model("llama", **SHAPES[shape], attn_implementation="sdpa")
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    return model


def base_of(name: str, device: str) -> BaseModel:
    """One of `SHAPES` with random weights, or what `load_base` makes of a name."""
    if name in SHAPES:
        return BaseModel.of(random_llama(name, device), name, fingerprint=name)
    return load_base(name, device=device)
