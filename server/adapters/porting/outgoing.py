"""An adapter as a PEFT checkpoint: its config and tensors. Knows no folders.

Exact, up to one rounding of each number to float32. What PEFT cannot say is refused, with what to
export instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from adapters_store.manifest import Manifest
from adapters_store.peft.folder import LAYER_PREFIX, SHARED_PREFIX
from server.adapters.memory.matrices import BasisSource
from server.adapters.methods.basis_id import PEFT_PAIRING, BasisId
from server.adapters.methods.method import Matrices, Method
from server.bases.model import BaseModel, TargetLinear
from server.errors import InvalidRequest

_WHOLE: Final = 1e-9  # alphas are written as integers where they are that near to one


@dataclass(frozen=True, eq=False)
class Outgoing:
    """A stored adapter of `base`, and where its matrices come from."""

    base: BaseModel
    source: BasisSource
    method: Method
    manifest: Manifest
    tensors: Mapping[str, Tensor]

    @property
    def basis(self) -> BasisId:
        return BasisId.of(self.manifest)

    @property
    def linears(self) -> list[TargetLinear]:
        return [self.base.targets[path] for path in self.manifest.targets]

    def vectors(self, linear: TargetLinear) -> dict[str, Tensor]:
        """A layer's vectors as stored."""
        names = self.method.shapes(linear, self.manifest.rank)
        return {name: self.tensors[f"{linear.path}.{name}"] for name in names}

    def folded(self, linear: TargetLinear) -> dict[str, Tensor]:
        """The same with the scale folded in, in float64: what is not stored is there as well."""
        exact = {name: vector.double() for name, vector in self.vectors(linear).items()}
        return self.method.fold(linear, self.manifest.rank, exact, self.manifest.scale)

    def matrices(self, linear: TargetLinear) -> Matrices:
        """A and B of one layer."""
        if self.basis.per_layer:
            return self.source.matrices(self.basis, linear.path)
        return self._shared

    def a(self, linear: TargetLinear) -> Tensor:
        """A [rank, in], float64."""
        matrices = self.matrices(linear)
        return matrices.a(self.manifest.rank, linear.in_features, torch.float64)

    def b(self, linear: TargetLinear) -> Tensor:
        """B [out, rank], float64."""
        matrices = self.matrices(linear)
        return matrices.b(linear.out_features, self.manifest.rank, torch.float64)

    def delta(self, linear: TargetLinear) -> Tensor:
        """What it adds to the weight, float64 [out, in]."""
        rank, scale = self.manifest.rank, self.manifest.scale
        vectors = self.vectors(linear)
        return self.method.dense(linear, rank, self.matrices(linear), vectors, scale)

    @cached_property
    def _shared(self) -> Matrices:
        # Imported ones are read from their file and verified: once, not for every layer.
        return self.source.matrices(self.basis, self.manifest.targets[0])


@dataclass(frozen=True)
class PeftCheckpoint:
    """What goes into a checkpoint folder."""

    config: Mapping[str, object]
    tensors: Mapping[str, Tensor]


def as_peft(adapter: Outgoing) -> PeftCheckpoint:
    """In PEFT's own form of the method, with the random matrices, if it has one; else as LoRA.

    Raises:
        InvalidRequest: PEFT's form cannot say it.
    """
    if adapter.method.name == "vera":
        return _vera(adapter)
    if adapter.method.name == "randlora":
        return _randlora(adapter)
    return as_lora(adapter)


def as_lora(adapter: Outgoing) -> PeftCheckpoint:
    """As a PEFT LoRA, which vLLM and others serve; VeRA: A' = d A, B' = b B, alpha = rank.

    Raises:
        InvalidRequest: the update has full rank.
    """
    rank = adapter.manifest.rank
    if adapter.method.name == "randlora":
        raise InvalidRequest(
            "an update of RandLoRA has full rank and is no LoRA: export it as peft or merged",
            param="format",
        )
    alpha = _alpha(adapter.manifest) if adapter.method.name == "lora" else None
    tensors = {}
    for linear in adapter.linears:
        a, b = _low_rank(adapter, linear, folded=alpha is None)
        tensors[f"{LAYER_PREFIX}{linear.path}.lora_A.weight"] = a.float()
        tensors[f"{LAYER_PREFIX}{linear.path}.lora_B.weight"] = b.float()
    config = {
        "lora_alpha": rank if alpha is None else alpha,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    return PeftCheckpoint(_common(adapter, "LORA") | config, tensors)


def _low_rank(adapter: Outgoing, linear: TargetLinear, *, folded: bool) -> tuple[Tensor, Tensor]:
    vectors = adapter.folded(linear) if folded else adapter.vectors(linear)
    if adapter.method.name == "vera":
        return vectors["d"][:, None] * adapter.a(linear), vectors["b"][:, None] * adapter.b(linear)
    a = vectors["A"] if "A" in vectors else adapter.a(linear)
    b = vectors["B"] if "B" in vectors else adapter.b(linear)
    return a, b


def _vera(adapter: Outgoing) -> PeftCheckpoint:
    if adapter.basis.per_layer:
        raise InvalidRequest(
            "PEFT's VeRA shares its matrices among all layers, and this adapter has some of its "
            "own for each: export it as peft-lora or merged",
            param="format",
        )
    rank, linears = adapter.manifest.rank, adapter.linears
    matrices = adapter.matrices(linears[0])
    max_in = max(linear.in_features for linear in linears)
    max_out = max(linear.out_features for linear in linears)
    tensors = {
        f"{SHARED_PREFIX}vera_A": matrices.a(rank, max_in, torch.float32),
        f"{SHARED_PREFIX}vera_B": matrices.b(max_out, rank, torch.float32),
    }
    for linear in linears:
        folded = adapter.folded(linear)
        tensors[f"{LAYER_PREFIX}{linear.path}.vera_lambda_d"] = folded["d"].float()
        tensors[f"{LAYER_PREFIX}{linear.path}.vera_lambda_b"] = folded["b"].float()
    config = {"projection_prng_key": 0, "save_projection": True, "vera_dropout": 0.0}
    return PeftCheckpoint(_common(adapter, "VERA") | config, tensors)


def _randlora(adapter: Outgoing) -> PeftCheckpoint:
    rank, linears = adapter.manifest.rank, adapter.linears
    max_in = max(linear.in_features for linear in linears)
    max_out = max(linear.out_features for linear in linears)
    narrow, wide = sorted((max_in, max_out))
    blocks = -(-narrow // rank)
    matrices = adapter.matrices(linears[0])
    if adapter.basis.pairing == PEFT_PAIRING:
        b = matrices.b(wide, blocks * rank, torch.float32)
    else:
        n = _common_blocks(adapter)
        b = torch.zeros(wide, blocks * rank)
        ours = matrices.b(wide, n * rank, torch.float32).view(wide, n, rank)
        # PEFT's column k * n + j meets what our column j * rank + k does.
        b[:, : n * rank] = ours.transpose(1, 2).flatten(1)
    tensors = {
        f"{SHARED_PREFIX}randlora_A": matrices.a(rank, narrow, torch.float32)[:, None],
        f"{SHARED_PREFIX}randlora_B": b.view(wide, blocks, rank),
    }
    alpha = _alpha(adapter.manifest)
    factor = adapter.manifest.scale if alpha is None else 1.0
    for linear in linears:
        vectors = adapter.vectors(linear)
        name = f"{LAYER_PREFIX}{linear.path}.randlora"
        tensors[f"{name}_lambda"] = (vectors["lambda"].double() * factor).t().float()
        tensors[f"{name}_gamma"] = vectors["gamma"]
    config = {
        "randlora_alpha": rank if alpha is None else alpha,
        "projection_prng_key": 0,
        "save_projection": True,
        "randlora_dropout": 0.0,
    }
    return PeftCheckpoint(_common(adapter, "RANDLORA") | config, tensors)


def _common_blocks(adapter: Outgoing) -> int:
    """n, if all layers have the same.

    PEFT's pairing of columns depends on n, and one B serves all its layers, so that one B can stand
    for our pairing at one n only.
    """
    rank = adapter.manifest.rank
    counts = {
        -(-min(linear.in_features, linear.out_features) // rank): linear.path
        for linear in adapter.linears
    }
    if len(counts) > 1:
        told = ", ".join(f"{n} in {path}" for n, path in sorted(counts.items()))
        raise InvalidRequest(
            f"PEFT's RandLoRA cannot express this adapter, whose layers have different numbers of "
            f"blocks ({told}): export it as merged, or train one with targets of one min(in, out)",
            param="format",
        )
    return next(iter(counts))


def _alpha(manifest: Manifest) -> int | None:
    """alpha = scale * rank, if it is an integer as PEFT has it; the scale is folded in if not."""
    alpha = manifest.scale * manifest.rank
    return round(alpha) if alpha and abs(alpha - round(alpha)) <= _WHOLE * abs(alpha) else None


def _common(adapter: Outgoing, kind: str) -> dict[str, object]:
    return {
        "peft_type": kind,
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
    """Last names of the modules, as people write them, if they mean these and no others."""
    names = {path.rpartition(".")[2] for path in targets}
    meant = {path for path, _ in base.model.named_modules() if path.rpartition(".")[2] in names}
    return sorted(names if meant == set(targets) else targets)
