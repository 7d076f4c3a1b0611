"""Reads `adapter_config.json`, and refuses what cannot be taken over as it is.

Knows the fields of PEFT up to 0.21 and which of them change what an adapter computes. Those are
refused with a remedy; so is a field that is unknown here and set, for it might.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from adapters_store.store_errors import InvalidCheckpoint

CONFIG_NAME: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 2**20

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
_INITS: Final = (True, False, "gaussian", "eva", "orthogonal", "mica")  # leave the base as it is

_MAX_PATTERNS: Final = 4096
_REPEATS: Final = re.compile(r"[*+?{]")
_REPEATED_GROUP: Final = re.compile(r"\)[*+?{]")

# Fields that do not change what the tensors mean, or that are read by name below.
_KNOWN: Final = {
    *("peft_type", "r", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "peft_version", "runtime_config", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "ensure_weight_tying"),
    *("projection_prng_key", "save_projection", "d_initial", "init_weights", "vera_dropout"),
    *("randlora_alpha", "randlora_dropout", "sparse", "very_sparse"),
    *("lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
    *("megatron_core", "qalora_group_size"),
}


@dataclass(frozen=True)
class PeftConfig:
    """One adapter's config: its `kind` (PEFT's `peft_type`), and the fields that are read by name.

    The getters raise InvalidCheckpoint for a value of the wrong type.
    """

    kind: str
    fields: Mapping[str, object]

    def integer(self, name: str, default: int) -> int:
        value = self.fields.get(name, default)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self._wrong(name, "an integer")

    def number(self, name: str, default: float) -> float:
        value = self.fields.get(name, default)
        if _is_number(value):
            return float(cast(float, value))
        raise self._wrong(name, "a number")

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.fields.get(name, default)
        if isinstance(value, bool):
            return value
        raise self._wrong(name, "true or false")

    def text(self, name: str) -> str:
        """A string, or "" for anything else."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def by_module(self, name: str) -> "Patterns":
        """Numbers by pattern of module path, such as `rank_pattern`; none if it is left out."""
        value = self.fields.get(name) or {}
        if not isinstance(value, dict) or not all(map(_is_number, value.values())):
            raise self._wrong(name, "numbers by module")
        return Patterns.of(name, value)

    def _wrong(self, name: str, kind: str) -> InvalidCheckpoint:
        return InvalidCheckpoint(
            f"{CONFIG_NAME}: {name}={str(self.fields.get(name))[:80]} is not {kind}"
        )


@dataclass(frozen=True)
class Patterns:
    """Numbers for the modules whose path, or the end of it, a regular expression matches."""

    compiled: Sequence[tuple[re.Pattern[str], float]]

    @classmethod
    def of(cls, name: str, numbers: Mapping[str, float]) -> "Patterns":
        """Raises InvalidCheckpoint for too many patterns, or one that could take for ever."""
        if len(numbers) > _MAX_PATTERNS:
            raise InvalidCheckpoint(
                f"{CONFIG_NAME}: {name} has {len(numbers)} entries, over the {_MAX_PATTERNS} read"
            )
        return cls([(_compiled(name, pattern), number) for pattern, number in numbers.items()])

    def find(self, path: str, default: float) -> float:
        """The number of the first pattern that matches, as PEFT chooses it."""
        return next((n for pattern, n in self.compiled if pattern.match(path)), default)


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
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{CONFIG_NAME} is not JSON: {error}") from error
    if not isinstance(fields, dict) or "peft_type" not in fields:
        raise InvalidCheckpoint(f"{CONFIG_NAME} has no peft_type: send the file that PEFT saved")
    kind = fields["peft_type"]
    if kind not in kinds:
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: peft_type {str(kind)[:80]!r} cannot be imported, only "
            f"{', '.join(kinds)}: {_MERGE}"
        )
    _refuse(kind, fields)
    return PeftConfig(kind, fields)


def _refuse(kind: str, fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        harmless, remedy = _REFUSED.get(name, ((), ""))
        if name in _KNOWN or not value or value in harmless:
            continue
        if not remedy:
            remedy = (
                "this build does not know it, and it might change what the tensors mean: " + _MERGE
            )
        elif kind != "LORA" and name in _BY_TENSOR:
            continue
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: {name}={json.dumps(value)[:80]} is refused; {remedy}"
        )
    init = fields.get("init_lora_weights", True)
    if init not in _INITS:
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: init_lora_weights={json.dumps(init)[:80]} is refused; it changed the "
            "base before training: save the adapter in its converted form (save_pretrained with "
            "path_initial_model_for_weight_conversion), or " + _MERGE
        )


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    # A pattern is somebody's program: without repeated groups, two repetitions stay polynomial.
    repeats = len(_REPEATS.findall(pattern))
    if len(pattern) > 256 or repeats > 2 or _REPEATED_GROUP.search(pattern):
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: {name} has the pattern {pattern[:80]!r}, which is too complex to be "
            "run safely: write module paths instead"
        )
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except re.error as error:
        raise InvalidCheckpoint(
            f"{CONFIG_NAME}: {name} has the pattern {pattern[:80]!r}, which is no "
            f"regular expression: {error}"
        ) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
