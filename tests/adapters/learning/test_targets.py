"""From what people write to module paths."""

import pytest

from server.adapters.learning.targets import resolve_targets
from server.errors import InvalidRequest
from tests.models import KINDS, Kind, tiny_base

ATTENTION: dict[Kind, set[str]] = {
    "gpt2": {"c_attn", "c_proj"},
    "phi": {"q_proj", "k_proj", "v_proj", "dense"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_and_attention(kind: Kind) -> None:
    base = tiny_base(kind)
    assert resolve_targets(base, "all-linear") == tuple(sorted(base.targets))
    attention = resolve_targets(base, "attention")
    names = {path.rsplit(".", 1)[-1] for path in attention}
    assert names == ATTENTION.get(kind, {"q_proj", "k_proj", "v_proj", "o_proj"})
    assert not any("mlp" in path for path in attention)


def test_suffixes_name_whole_parts_of_a_path() -> None:
    base = tiny_base("llama")
    assert resolve_targets(base, ["q_proj", "1.mlp.up_proj", "layers.1.self_attn.q_proj"]) == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    )
    with pytest.raises(InvalidRequest, match=r"named 'proj'.*down_proj, gate_proj") as refusal:
        resolve_targets(base, ["q_proj", "proj"])
    assert refusal.value.param == "targets"
