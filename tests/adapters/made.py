"""Random adapters of a base, and what the base must answer under one: the plain dense merge."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from adapters_store.imported_bases import ImportedBases
from adapters_store.manifest import Manifest
from server.adapters.learning.targets import resolve_targets
from server.adapters.memory.matrices import BasisSource
from server.adapters.methods.basis_id import NO_BASIS, BasisId
from server.adapters.methods.registry import method_named
from server.bases.model import BaseModel
from server.bases.seeded_matrices import Basis

_NO_OPTIONS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True)
class Made:
    """An adapter as the store gives it."""

    manifest: Manifest
    tensors: dict[str, Tensor]


def make_adapter(
    base: BaseModel,
    *,
    method: str = "vera",
    rank: int = 8,
    seed: int = 7,
    targets: str | Sequence[str] = "all-linear",
    draw: int = 0,
    scale: float = 1.0,
    options: Mapping[str, str] = _NO_OPTIONS,
) -> Made:
    """An adapter that moves the logits about as much as training does."""
    random = torch.Generator().manual_seed(draw)
    kind = method_named(method, options)
    basis, source = kind.basis(seed), BasisSource(base)
    paths = resolve_targets(base, targets)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        linear = base.targets[path]
        vectors = {
            name: torch.randn(shape, generator=random)
            for name, shape in kind.shapes(linear, rank).items()
        }
        change = kind.dense(linear, rank, source.matrices(basis, path), vectors, 1.0)
        last = list(vectors)[-1]  # the change is linear in each of them
        vectors[last] *= (3 * linear.in_features * change.square().mean()).rsqrt().float()
        tensors |= {f"{path}.{name}": vector for name, vector in vectors.items()}
    manifest = Manifest(
        method=method,
        rank=rank,
        scale=scale,
        seed=basis.seed,
        basis_spec=basis.spec,
        basis_sha256="" if basis.spec == NO_BASIS else Basis(seed, basis.spec).tile_hash(),
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        targets=paths,
        created_at=0,
        options=dict(kind.options),
    )
    return Made(manifest, tensors)


def one_of_each(base: BaseModel) -> list[Made]:
    """A user of every method and variant; several share a basis, and no two all else."""
    last = max(base.targets)
    return [
        make_adapter(base, rank=6, draw=1),
        make_adapter(base, rank=9, draw=2, options={"trained": "d"}),
        make_adapter(base, rank=4, draw=3, options={"trained": "b"}, scale=-0.5),
        make_adapter(base, rank=5, draw=4, options={"basis": "per-layer"}),
        make_adapter(base, method="randlora", rank=7, draw=5),
        make_adapter(base, method="randlora", rank=12, draw=6, options={"sparsity": "3"}),
        make_adapter(base, method="asymmetric-lora", rank=3, draw=7, scale=2.0),
        make_adapter(base, method="asymmetric-lora", rank=3, draw=8, options={"trained": "A"}),
        make_adapter(base, method="lora", rank=2, draw=9),
        make_adapter(base, method="lora", rank=8, draw=10, targets=[last], scale=-1.0),
        make_adapter(base, method="lora", rank=6, draw=11, targets="attention"),
    ]


def merged_logits(
    base: BaseModel, adapter: Made | None, tokens: Tensor, imported: ImportedBases | None = None
) -> Tensor:
    """Logits [tokens, vocab] of a copy of `base` whose weights hold the adapter: W + delta.

    On the base's device, as `tokens` must be. `imported` holds the basis of an imported adapter.
    """
    model = copy.deepcopy(base.model)
    for module in model.modules():
        module.__dict__.pop("forward", None)  # a deep copy of a wrapped model is wrapped as well
    if adapter is not None:
        _merge(base, model, adapter, BasisSource(base, imported))
    with torch.inference_mode():
        logits: Tensor = model(tokens[None], use_cache=False).logits[0]
    return logits


def _merge(base: BaseModel, model: torch.nn.Module, adapter: Made, source: BasisSource) -> None:
    manifest = adapter.manifest
    method = method_named(manifest.method, manifest.options)
    for path in manifest.targets:
        linear = base.targets[path]
        vectors = {
            name: adapter.tensors[f"{path}.{name}"] for name in method.shapes(linear, manifest.rank)
        }
        matrices = source.matrices(BasisId.of(manifest), path)
        change = method.dense(linear, manifest.rank, matrices, vectors, manifest.scale)
        module = model.get_submodule(path)
        weight = module.get_parameter("weight")
        with torch.no_grad():
            change = change.to(weight.device)
            weight.copy_(weight.double() + (change.t() if isinstance(module, Conv1D) else change))
