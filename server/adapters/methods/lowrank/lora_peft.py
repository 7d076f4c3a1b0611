"""A PEFT LoRA checkpoint as an adapter of the method `lora`.

    y = W x + (alpha / r) B (A x)        rsLoRA: alpha / sqrt(r)

PEFT lets every module have its own r and alpha. Here an adapter has one rank and one scale. Smaller
ranks are filled up with zeros, and B takes the quotient of a module's scale and the common one.
"""

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from adapters_store.peft.adapter_config import PeftConfig
from adapters_store.peft.folder import LAYER_PREFIX
from adapters_store.store_errors import InvalidCheckpoint
from server.adapters.methods.method import Method
from server.adapters.methods.peft.incoming import Imported, IncomingCheckpoint

_A, _B = "lora_A.weight", "lora_B.weight"


def read_lora(method: Method, checkpoint: IncomingCheckpoint) -> Imported:
    """Raises InvalidCheckpoint, naming the tensor or field at fault."""
    layers = checkpoint.layers((_A, _B))
    config = checkpoint.config
    patterns = config.by_module("rank_pattern", layers, config.integer("r", 8))
    ranks = {path: checkpoint.rank(rank) for path, rank in patterns.items()}
    scales = _scales(config, ranks)
    # PEFT serves an alpha of 0 as an update of 0: B is 0 there, under any common scale.
    scale, _ = next(iter(Counter(filter(None, scales.values())).most_common(1)), (1.0, 0))
    rank = max(ranks.values())
    vectors: dict[str, Tensor] = {}
    for path, linear in layers.items():
        a = checkpoint.vector(path, _A, (ranks[path], linear.in_features))
        b = checkpoint.vector(path, _B, (linear.out_features, ranks[path]))
        if scales[path] != scale:
            b = _times(f"{LAYER_PREFIX}{path}.{_B}", b, scales[path] / scale)
        empty = rank - ranks[path]
        vectors[f"{path}.A"] = functional.pad(a, (0, 0, 0, empty))
        vectors[f"{path}.B"] = functional.pad(b, (0, empty))
    return Imported(method, rank, scale, vectors)


def _scales(config: PeftConfig, ranks: Mapping[str, int]) -> dict[str, float]:
    alphas = config.by_module("alpha_pattern", ranks, config.number("lora_alpha", 8))
    rslora = config.flag("use_rslora")
    return {
        path: alphas[path] / (math.sqrt(rank) if rslora else rank) for path, rank in ranks.items()
    }


def _times(name: str, b: Tensor, factor: float) -> Tensor:
    scaled = (b.double() * factor).float()
    if not torch.isfinite(scaled).all():
        raise InvalidCheckpoint(f"tensor {name!r} times its scale, {factor}, overflows")
    return scaled
