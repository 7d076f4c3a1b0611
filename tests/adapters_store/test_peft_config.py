"""What a PEFT config may say, and how the rest is refused."""

import json
import time
from typing import Any

import pytest

from adapters_store.peft.adapter_config import MAX_CONFIG_BYTES, Patterns, PeftConfig, parse_config
from adapters_store.store_errors import InvalidCheckpoint

KINDS = ("VERA", "RANDLORA", "LORA")


def parse(kind: str = "LORA", **fields: Any) -> PeftConfig:
    return parse_config(json.dumps({"peft_type": kind, "r": 8, **fields}).encode(), KINDS)


@pytest.mark.parametrize(
    "fields",
    [
        {"bias": "none", "modules_to_save": None, "use_dora": False, "loftq_config": {}},
        {"init_lora_weights": "gaussian", "megatron_core": "megatron.core", "revision": "main"},
        {"init_lora_weights": False, "fan_in_fan_out": True, "lora_dropout": 0.5},
        {"something_new": None, "another": [], "third": False},
        {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"},
    ],
)
def test_harmless_fields_pass(fields: dict[str, Any]) -> None:
    assert parse(**fields).kind == "LORA"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, r"use_dora=true is refused; DoRA rescales.*merge_and_unload"),
        ({"bias": "all"}, r'bias="all" is refused; .* merge'),
        ({"lora_bias": True}, "lora_bias=true"),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save=\["lm_head"\]'),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora.*quantised"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights.*path_initial_model_for_weight_con"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights.*changed the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"something_new": 3}, "something_new=3 is refused; this build does not know it"),
    ],
)
def test_what_changes_the_sum_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=said):
        parse(**fields)


def test_veras_biases_show_as_tensors_and_not_here() -> None:
    assert parse("VERA", bias="all", modules_to_save=["score"]).kind == "VERA"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "peft_type"),
        (b'{"r": 8}', "peft_type"),
        (b'{"peft_type": "ADALORA"}', "'ADALORA' cannot be imported, only VERA, RANDLORA, LORA"),
        (b'{"peft_type": ["LORA"]}', "cannot be imported"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (MAX_CONFIG_BYTES + 1), "over"),
    ],
)
def test_what_is_no_config(text: bytes, said: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=said):
        parse_config(text, KINDS)


def test_values_have_types() -> None:
    config = parse(r=8, lora_alpha=12.5, use_rslora=True, peft_version="0.21")
    assert config.integer("r", 1) == 8 and config.integer("absent", 3) == 3
    assert config.number("lora_alpha", 1) == 12.5 and config.number("r", 1) == 8.0
    assert config.flag("use_rslora") and not config.flag("absent")
    assert config.text("peft_version") == "0.21" and config.text("r") == ""
    for wrong in (
        lambda: parse(r=True).integer("r", 1),
        lambda: parse(r="8").integer("r", 1),
        lambda: parse(r=None).integer("r", 1),
        lambda: parse(lora_alpha="x").number("lora_alpha", 1),
        lambda: parse_config(b'{"peft_type": "LORA", "lora_alpha": NaN}', KINDS).number(
            "lora_alpha", 1
        ),
        lambda: parse(use_rslora=1).flag("use_rslora"),
        lambda: parse(rank_pattern={"x": "y"}).by_module("rank_pattern"),
        lambda: parse(rank_pattern=[1]).by_module("rank_pattern"),
    ):
        with pytest.raises(InvalidCheckpoint, match="is not"):
            wrong()


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("q_proj", "model.layers.0.q_proj", True),
        ("q_proj", "model.layers.0.mq_proj", False),
        ("layers.0.q_proj", "model.layers.0.q_proj", True),
        ("^model.layers.0.q_proj", "model.layers.0.q_proj", True),
        (r"layers\.\d.q_proj", "model.layers.7.q_proj", True),
        (r".*\.(0|1)\..*q_proj", "model.layers.1.q_proj", True),
        ("q", "model.layers.0.q_proj", False),
    ],
)
def test_patterns_match_the_end_of_a_path(pattern: str, path: str, found: bool) -> None:
    assert Patterns.of("rank_pattern", {"other": 1, pattern: 5}).find(path, 8) == (
        5 if found else 8
    )


@pytest.mark.parametrize("pattern", [r"(a+)+b", "(a|a)*", "a*b*c*d*", "x" * 300, "(unclosed"])
def test_a_pattern_cannot_hang_the_server(pattern: str) -> None:
    began = time.thread_time()
    with pytest.raises(InvalidCheckpoint, match="pattern"):
        Patterns.of("rank_pattern", {pattern: 1}).find("a" * 60, 0)
    assert time.thread_time() - began < 1
    with pytest.raises(InvalidCheckpoint, match="entries"):
        Patterns.of("rank_pattern", {str(i): 1 for i in range(5000)})
