"""Which bases have the layers that the fused decoder and lean training run."""

from typing import Any

import pytest

from server.bases.layer_shape import layer_shape
from tests.models import KINDS, Kind, tiny_base


@pytest.mark.parametrize("kind", KINDS)
def test_five_kinds_have_a_shape(kind: Kind) -> None:
    """Phi's one norm and GPT-2's learnt positions are other layers."""
    shape: dict[str, Any] = {} if kind == "gpt2" else {"hidden_size": 64}
    known = layer_shape(tiny_base(kind, **shape)) is not None
    assert known == (kind in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text"))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("llama", {"hidden_size": 48}),  # heads of 12 entries
        ("llama", {"hidden_size": 64, "head_dim": 8}),
        ("llama", {"hidden_size": 64, "hidden_act": "gelu"}),
        ("qwen3", {"hidden_act": "gelu_pytorch_tanh"}),
        ("qwen3", {"head_dim": 24}),
        ("gemma3_text", {"hidden_activation": "silu"}),
        ("gemma3_text", {"final_logit_softcapping": 30.0}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
def test_what_the_kernels_lack_has_none(kind: Kind, shape: dict[str, Any]) -> None:
    assert layer_shape(tiny_base(kind, **shape)) is None
