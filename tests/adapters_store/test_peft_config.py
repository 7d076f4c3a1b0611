"""What a PEFT config may say, and how the rest is refused."""

import json
from typing import Any

import pytest

from adapters_store.peft.adapter_config import MAX_CONFIG_BYTES, PeftConfig, parse_config
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
        {"lora_dtype": "bf16", "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6, "model_type": "qwen3"},
        {"use_rslora": None, "init_lora_weights": None, "modules_to_save": []},
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
        (b"[]", "is no JSON object"),
        (b'{"r": 8}', "peft_type"),
        (b'{"peft_type": "ADALORA"}', "'ADALORA' cannot be imported, only VERA, RANDLORA, LORA"),
        (b'{"peft_type": ["LORA"]}', "cannot be imported"),
        (b"[" * 100_000, "more than .* 16384 lists, objects and keys"),
        (b'{"peft_type":' + b"[" * 10_000, "nested more than 32 deep"),
        (b'{"use_dora":' + b"[" * 40 + b"1" + b"]" * 40 + b"}", "nested more than 32 deep"),
        (b'{"x": [' + b"{}," * 20_000 + b"{}]}", "more than .* 16384 lists, objects and keys"),
        (b'{"peft_type": "LORA", "r": 8, "r": 16}', "has the key 'r' twice"),
        (b'{"peft_type": "LORA", "rank_pattern": {"q": 1, "q": 2}}', "has the key 'q' twice"),
        (b'{"peft_type": "\xff"}', "not UTF-8 at byte 16"),
        (b'{"peft_type": "LORA", "r": -}', "not JSON"),
        (b'{"peft_type": true}', "True' cannot be imported"),
        (b" " * (MAX_CONFIG_BYTES + 1), "over"),
    ],
)
def test_what_is_no_config(text: bytes, said: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=said):
        parse_config(text, KINDS)


def test_values_are_read() -> None:
    config = parse(r=8, lora_alpha=12.5, use_rslora=True, peft_version="0.21", revision=None)
    assert config.integer("r", 1) == 8 and config.integer("absent", 3) == 3
    assert config.number("lora_alpha", 1) == 12.5 and config.number("r", 1) == 8.0
    assert config.flag("use_rslora") and not config.flag("absent")
    assert config.text("peft_version") == "0.21" and config.text("revision") == ""
    assert parse(rank_pattern=None).by_module("rank_pattern", ["q"], 8) == {"q": 8}
    config = parse(rank_pattern={"layers.[01].q": 4, "k": 2})
    assert config.by_module("rank_pattern", ["layers.1.q", "a.k", "v"], 8) == {
        "layers.1.q": 4,
        "a.k": 2,
        "v": 8,
    }
    with pytest.raises(InvalidCheckpoint, match=r"adapter_config.json: rank_pattern .*'\(\?!k\)q'"):
        parse(rank_pattern={"(?!k)q": 4}).by_module("rank_pattern", ["q"], 8)


ODD_NUMBERS = ("true", '"8"', "null", "[8]", "{}", "NaN", "-Infinity", "1e309", "9" * 5000)
WRONG = {
    "r": ("1.5", "8.0", "1e18", "9" * 25, *ODD_NUMBERS),
    "projection_prng_key": ("0.5", *ODD_NUMBERS),
    "lora_alpha": ODD_NUMBERS,
    "randlora_alpha": ODD_NUMBERS,
    "lora_dropout": ODD_NUMBERS,
    "use_rslora": ("1", "0", '"true"'),
    "sparse": ("1", '"yes"'),
    "fan_in_fan_out": ("1",),
    "rank_pattern": ("[1]", '"q"', "8", "true", *(f'{{"q": {odd}}}' for odd in ODD_NUMBERS)),
    "alpha_pattern": ('{"q": null}', '{"q": {"k": 1}}'),
    "target_modules": ("5", "true", '["q", 5]', '{"q": 1}'),
    "exclude_modules": ("[[]]",),
    "layers_pattern": ("1",),
    "layers_to_transform": ('"1"', "[0.5]", "[true]"),
    "task_type": ("1",),
    "base_model_name_or_path": ("[]", "true"),
    "peft_version": ("0.21",),
    "auto_mapping": ("1",),
    "eva_config": ("true",),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_with_its_field(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(InvalidCheckpoint, match=f"^adapter_config.json: {name}=.* is not .*:"):
            parse_config(f'{{"peft_type": "LORA", "{name}": {value}}}'.encode(), KINDS)
