"""The same adapters made by PEFT, with the same start and the same steps.

PEFT's random matrices have another spread than ours: Kaiming's for VeRA, one for RandLoRA. A vector
between them therefore means something else. `peft_groups` gives each kind of vector the factor by
which its steps must be larger or smaller to move the weights as far as a step of ours does: Adam's
steps do not depend on the size of gradients, so both sides then differ by nothing but the entries
of their matrices, which is what is compared. One learning rate would compare conventions.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, RandLoraConfig, VeraConfig, get_peft_model
from torch import nn

from benchmarks.claims.runs import Run
from server.adapters.learning.targets import resolve_targets
from server.adapters.methods.registry import method_named
from server.bases.model import BaseModel, TargetLinear
from server.bases.seeded_matrices import Basis

_OUR_SPREAD = math.sqrt(1 / 3)  # of a dense seeded matrix's entries


def peft_model(run: Run, base: BaseModel) -> PeftModel:
    """Put PEFT's adapter into `base.model`."""
    targets = run.targets[0] if len(run.targets) == 1 else run.targets
    paths = list(resolve_targets(base, targets))
    model: PeftModel = get_peft_model(base.model, _config(run, paths))
    return model


def _config(run: Run, paths: list[str]) -> Any:
    if run.method == "vera":
        return VeraConfig(
            r=run.rank, target_modules=paths, projection_prng_key=run.seed, save_projection=False
        )
    if run.method == "lora":
        return LoraConfig(r=run.rank, lora_alpha=2 * run.rank, target_modules=paths)
    if run.method == "randlora":
        return RandLoraConfig(
            r=run.rank,
            randlora_alpha=run.rank,  # a scale of one: the rest is in the factors
            target_modules=paths,
            projection_prng_key=run.seed,
            save_projection=False,
        )
    raise ValueError(f"PEFT is not measured with {run.method!r}")


def peft_groups(
    run: Run, base: BaseModel, model: PeftModel
) -> Iterator[tuple[list[nn.Parameter], float]]:
    """All that PEFT trains, with the factor of each; sets RandLoRA's start to ours as well."""
    groups: dict[float, list[nn.Parameter]] = {}
    for path, linear in base.targets.items():
        module = model.get_submodule(f"base_model.model.{path}")
        for name, factor in _factors(run, base, linear, module).items():
            vector = getattr(module, name)["default"]
            parameter = vector if isinstance(vector, nn.Parameter) else vector.weight
            groups.setdefault(factor, []).append(parameter)
    count = sum(len(parameters) for parameters in groups.values())
    trained = sum(p.requires_grad for p in model.parameters())
    if count != trained:
        raise RuntimeError(f"PEFT trains {trained} parameters, and {count} of them are known here")
    for factor, parameters in groups.items():
        yield parameters, factor


def _factors(
    run: Run, base: BaseModel, linear: TargetLinear, module: nn.Module
) -> dict[str, float]:
    """By PEFT's names of a layer's vectors."""
    if run.method == "lora":
        return {"lora_A": 1.0, "lora_B": 1.0}
    options = dict(run.options)
    method = method_named(run.method, {key: str(value) for key, value in options.items()})
    scale = float(options.get("alpha", run.rank * method.default_scale(run.rank))) / run.rank
    unit = method.unit(linear, run.rank)
    ours = _OUR_SPREAD**2 * scale * math.prod(unit.values())
    if run.method == "vera":
        widest = max(target.in_features for target in base.targets.values())
        theirs = math.sqrt(2 / widest) * math.sqrt(2 / run.rank)
        return {"vera_lambda_d": 1.0, "vera_lambda_b": ours / theirs}
    start = method.initial(linear, run.rank, Basis(run.seed))["gamma"].flatten()[0].item()
    with torch.no_grad():
        getattr(module, "randlora_gamma")["default"].fill_(start / unit["gamma"])  # noqa: B009
    return {"randlora_gamma": 1.0, "randlora_lambda": ours}
