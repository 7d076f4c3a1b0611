"""An adapter as a PEFT checkpoint: what all exports share, and a LoRA of any thin product.

Exact, up to one rounding of each number to float32. What PEFT cannot express is refused, with the
format to export instead. Knows no folders and no method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from adapters_store.manifest import Manifest
from adapters_store.peft.folder import LAYER_PREFIX
from server.adapters.methods.checked_adapter import CheckedAdapter
from server.bases.model import BaseModel

_WHOLE: Final = 1e-9  # alphas are written as integers where they are that near to one


@dataclass(frozen=True)
class PeftCheckpoint:
    """What goes into a checkpoint folder."""

    config: Mapping[str, object]
    tensors: Mapping[str, Tensor]


def as_lora(adapter: CheckedAdapter) -> PeftCheckpoint | None:
    """As a PEFT LoRA, which vLLM and others serve; VeRA: A' = d A, B' = b B.

    None if the update is no thin product; see `server.adapters.methods.method.Method.factors`.
    """
    alpha = whole_alpha(adapter.manifest)
    scale = adapter.manifest.scale if alpha is None else 1.0
    tensors = {}
    for linear in adapter.linears:
        factors = adapter.factors(linear, scale)
        if factors is None:
            return None
        b, a = factors
        tensors[f"{LAYER_PREFIX}{linear.path}.lora_A.weight"] = a.float()
        tensors[f"{LAYER_PREFIX}{linear.path}.lora_B.weight"] = b.float()
    config = {
        "lora_alpha": adapter.manifest.rank if alpha is None else alpha,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    return PeftCheckpoint(common_config(adapter, "LORA") | config, tensors)


def whole_alpha(manifest: Manifest) -> int | None:
    """alpha = scale * rank, if it is a whole number as in PEFT; None: fold the scale in."""
    alpha = manifest.scale * manifest.rank
    return round(alpha) if alpha and abs(alpha - round(alpha)) <= _WHOLE * abs(alpha) else None


def common_config(adapter: CheckedAdapter, peft_type: str) -> dict[str, object]:
    """What the configs of all kinds have."""
    return {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base.name,
        "inference_mode": True,
        "r": adapter.manifest.rank,
        "target_modules": _target_modules(adapter.base, adapter.manifest.targets),
        "bias": "none",
        "fan_in_fan_out": any(isinstance(linear.module, Conv1D) for linear in adapter.linears),
        "modules_to_save": None,
    }


def _target_modules(base: BaseModel, targets: Sequence[str]) -> list[str]:
    """The last names of the modules, if those name no others as well; else their paths."""
    names = {path.rpartition(".")[2] for path in targets}
    meant = {path for path, _ in base.model.named_modules() if path.rpartition(".")[2] in names}
    return sorted(names if meant == set(targets) else targets)
