"""The table of base models in docs/models.md: its figures, from the configurations themselves.

The configurations are those that the models are published with, as far as shapes depend on them.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from server.bases.base_files import outline_base
from server.bases.layer_shape import layer_shape
from server.bases.model import BaseModel
from server.bases.short_names import PORCH

PAGE: Final = Path(__file__).parents[2] / "docs/models.md"
_NAMES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
_SHAPES: Final = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "mistralai/Mistral-7B-Instruct-v0.3": ("mistral", 32768, 4096, 14336, 32, 32, 8, 128, False),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", 151936, 896, 4864, 24, 14, 2, 64, True),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False),
    "Qwen/Qwen3-0.6B": ("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen/Qwen3-8B": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
    "google/gemma-3-270m-it": ("gemma3_text", 262144, 640, 2048, 18, 4, 1, 256, True),
    "google/gemma-3-1b-it": ("gemma3_text", 262144, 1152, 6912, 26, 4, 1, 256, True),
    "HuggingFaceTB/SmolLM3-3B": ("smollm3", 128256, 2048, 11008, 36, 16, 4, 128, True),
    "microsoft/phi-2": ("phi", 51200, 2560, 10240, 32, 32, 32, 80, False),
    "openai-community/gpt2": ("gpt2", 50257, 768, 3072, 12, 12, 12, 64, True),
}


def _config(family: str, *shape: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"model_type": family, "dtype": "bfloat16"}
    fields |= dict(zip(_NAMES, shape, strict=True))
    if family == "gpt2":
        fields |= {"n_embd": fields.pop("hidden_size"), "n_layer": fields.pop("num_hidden_layers")}
        fields |= {"n_head": fields.pop("num_attention_heads")}
        del fields["num_key_value_heads"], fields["head_dim"], fields["intermediate_size"]
    return fields


def row(name: str, base: BaseModel) -> str:
    """Weights count 2 bytes each, one tensor that is used twice once."""
    weights = 2 * sum(parameter.numel() for parameter in base.model.parameters())
    a_token = 2 * 2 * base.num_layers * base.num_kv_heads * base.head_dim
    family, path = base.model.config.model_type, "plain" if layer_shape(base) is None else "fused"
    return f"| {name} | {family} | {path} | {weights / 1e9:.2f} GB | {a_token / 1024:g} KiB |"


@pytest.mark.parametrize("name", [PORCH, *_SHAPES])
def test_the_table_s_figures_are_those_of_the_configurations(name: str, tmp_path: Path) -> None:
    source: str | Path = name
    if name in _SHAPES:
        source = tmp_path / "config.json"
        source.write_text(json.dumps(_config(*_SHAPES[name])))
    assert row(name, outline_base(source)) in PAGE.read_text("utf-8").splitlines()


def test_the_table_has_no_other_rows() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.endswith(" KiB |")]
    assert [line.split(" ")[1] for line in rows] == [PORCH, *_SHAPES]
