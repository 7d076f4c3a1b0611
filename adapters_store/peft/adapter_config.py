"""Reads `adapter_config.json`, and refuses what cannot be taken over as it is.

Knows the fields of PEFT up to 0.21 and which of them change what an adapter computes. Those are
refused with a remedy; so is a field that is unknown here and set, for it might.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, cast

from adapters_store.outside_values import BadJson, JsonBounds, read_json
from adapters_store.peft.patterns import numbers_by_module
from adapters_store.store_errors import InvalidCheckpoint

CONFIG_NAME: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 2**20
_BOUNDS: Final = JsonBounds(objects=16_384, depth=32)

_MERGE = "merge it into its base with PEFT (merge_and_unload) and serve the result as a base model"
_NOT_LINEAR = "it trains more than linears: train it again without, or " + _MERGE
_VARIANT = "its variant of LoRA computes something else: " + _MERGE

# Harmless values, apart from null, false, "" and empty ones; and the remedy for all others.
_REFUSED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "bias": (("none",), "trained biases belong to no linear's update: " + _MERGE),
    "lora_bias": ((), "trained biases belong to no linear's update: " + _MERGE),
    "modules_to_save": ((), _NOT_LINEAR),
    "trainable_token_indices": ((), _NOT_LINEAR),
    "target_parameters": ((), _NOT_LINEAR),
    "layer_replication": ((), "it changes which layers the base has: " + _MERGE),
    "use_dora": ((), "DoRA rescales the base's weights: " + _MERGE),
    "use_qalora": ((), "QALoRA is for quantised bases, which are not served"),
    "use_bdlora": ((), _VARIANT),
    "alora_invocation_tokens": ((), _VARIANT),
    "arrow_config": ((), _VARIANT),
    "kasa_config": ((), _VARIANT),
    "monteclora_config": ((), _VARIANT),
    "velora_config": ((), _VARIANT),
    "megatron_config": ((), "Megatron's parallel linears are not served: export it from Megatron"),
}
# VeRA and RandLoRA: other trained parts are tensors of the checkpoint, and refused by their names.
_BY_TENSOR: Final = ("bias", "modules_to_save")
# These leave the base as it is.
_INITS: Final = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _are_texts(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _are_integers(value: object) -> bool:
    return (
        value is None
        or _is_integer(value)
        or (isinstance(value, list) and all(map(_is_integer, value)))
    )


def _are_numbers_by_module(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_number, value.values())))


def _is_object(value: object) -> bool:
    return value is None or isinstance(value, dict)


def _is_anything(value: object) -> bool:
    return True


# Fields that do not change what the tensors mean, or that are read by name below.
_KNOWN: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    name: (fits, kind)
    for fits, kind, names in (
        (_is_integer, "an integer of 64 bits", "r projection_prng_key"),
        (_is_number, "a finite number", "lora_alpha randlora_alpha d_initial"),
        (_is_number, "a finite number", "lora_dropout vera_dropout randlora_dropout"),
        (_is_flag, "true or false", "use_rslora sparse very_sparse fan_in_fan_out"),
        (_is_flag, "true or false", "inference_mode save_projection ensure_weight_tying"),
        (_are_numbers_by_module, "finite numbers by module", "rank_pattern alpha_pattern"),
        (_are_texts, "a text or a list of them", "target_modules exclude_modules layers_pattern"),
        (_are_integers, "an integer of 64 bits or a list of them", "layers_to_transform"),
        (_is_text, "a text", "peft_type task_type base_model_name_or_path revision"),
        (_is_text, "a text", "peft_version megatron_core"),
        (_is_object, "an object", "auto_mapping runtime_config"),
        (_is_object, "an object", "eva_config corda_config lora_ga_config loftq_config"),
        (_is_anything, "", "init_weights init_lora_weights qalora_group_size"),
        # How others than PEFT trained it, and with what: ms-swift, LLaMA-Factory, Unsloth.
        (_is_anything, "", "lora_dtype lorap_lr_ratio lorap_emb_lr group_size"),
        (_is_anything, "", "loraplus_lr_ratio loraplus_lr_embedding loraplus_emb_lr"),
        (_is_anything, "", "model_type model_id_or_path dtype torch_dtype"),
        (_is_anything, "", "swift_version unsloth_version transformers_version unsloth_fixed"),
    )
    for name in names.split()
}


@dataclass(frozen=True)
class PeftConfig:
    """One adapter's config: its `kind` (PEFT's `peft_type`), and the fields that are read by name.

    `parse_config` has checked the types of the fields.
    """

    kind: str
    fields: Mapping[str, object]

    def integer(self, name: str, default: int) -> int:
        return cast(int, self.fields.get(name, default))

    def number(self, name: str, default: float) -> float:
        return float(cast(float, self.fields.get(name, default)))

    def flag(self, name: str) -> bool:
        return bool(self.fields.get(name))

    def text(self, name: str) -> str:
        """A string; "" if it is left out."""
        return cast(str, self.fields.get(name) or "")

    def by_module(self, name: str, paths: Collection[str], default: float) -> dict[str, float]:
        """Each module's number, by the patterns of a field such as `rank_pattern`.

        Raises:
            InvalidCheckpoint: a pattern that is not supported.
        """
        numbers = cast(dict[str, float], self.fields.get(name) or {})
        return numbers_by_module(f"{CONFIG_NAME}: {name}", numbers, paths, default)


def parse_config(text: bytes, kinds: Collection[str]) -> PeftConfig:
    """Read a config of one of these `kinds`, such as "LORA".

    Raises:
        InvalidCheckpoint: naming the field at fault and what to do about it.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidCheckpoint(
            f"{CONFIG_NAME} is over {MAX_CONFIG_BYTES} bytes: send the file that PEFT saved"
        )
    try:
        fields = read_json(text, unique_keys=True, finite=False, bounds=_BOUNDS)
    except BadJson as error:
        raise InvalidCheckpoint(f"{CONFIG_NAME} {error}; send the file that PEFT saved") from error
    if not isinstance(fields, dict):
        raise InvalidCheckpoint(f"{CONFIG_NAME} is no JSON object: send the file that PEFT saved")
    if "peft_type" not in fields:
        raise InvalidCheckpoint(f"{CONFIG_NAME} has no peft_type: send the file that PEFT saved")
    kind = fields["peft_type"]
    if not isinstance(kind, str) or kind not in kinds:
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: peft_type {str(kind)[:80]!r} cannot be imported, only "
            f"{', '.join(kinds)}: {_MERGE}"
        )
    _refuse(kind, fields)
    return PeftConfig(kind, fields)


def _refuse(kind: str, fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        harmless, remedy = _REFUSED.get(name, ((), ""))
        if name in _KNOWN:
            _check_type(name, value)
            continue
        if not value or value in harmless:
            continue
        if not remedy:
            remedy = (
                "this build does not know it, and it might change what the tensors mean: " + _MERGE
            )
        elif kind != "LORA" and name in _BY_TENSOR:
            continue
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: {name[:80]}={json.dumps(value)[:80]} is refused; {remedy}"
        )
    init = fields.get("init_lora_weights", True)
    if init not in _INITS:
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: init_lora_weights={json.dumps(init)[:80]} is refused; it changed the "
            "base before training: save the adapter in its converted form (save_pretrained with "
            "path_initial_model_for_weight_conversion), or " + _MERGE
        )


def _check_type(name: str, value: object) -> None:
    fits, kind = _KNOWN[name]
    if not fits(value):
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: {name}={str(value)[:80]} is not {kind}: send the file that PEFT saved"
        )
