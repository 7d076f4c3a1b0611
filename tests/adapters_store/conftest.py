"""Factories of manifests, tensors and stores."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters_store.manifest import Manifest
from adapters_store.store import AdapterStore

MakeManifest = Callable[..., Manifest]
MakeTensors = Callable[..., dict[str, Tensor]]


@pytest.fixture
def make_manifest() -> MakeManifest:
    def make(rank: int = 4, **provenance: str) -> Manifest:
        return Manifest(
            method="vera",
            rank=rank,
            scale=1.0,
            seed=2**64 - 1,
            basis_spec="philox4x64-10/s8/v1",
            basis_sha256="ab" * 32,
            base_name="tiny",
            base_fingerprint="cd" * 32,
            targets=("model.layers.0.self_attn.q_proj",),
            created_at=1_700_000_000,
            provenance=provenance,
        )

    return make


@pytest.fixture
def make_tensors() -> MakeTensors:
    def make(layers: int = 2, rank: int = 4, out: int = 6, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"d": rank, "b": out}
        return {
            f"model.layers.{layer}.self_attn.q_proj.{vector}": torch.randn(
                size, generator=generator
            )
            for layer in range(layers)
            for vector, size in shapes.items()
        }

    return make


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")
