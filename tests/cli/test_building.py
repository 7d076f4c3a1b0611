"""How settings become parts."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adapters_store.store import AdapterStore
from server.bases.model import BaseModel
from server.config import Settings
from server.wiring import building
from tests.models import tiny_base


@pytest.mark.parametrize(("device", "dense_mb"), [("cpu", 0), ("cuda", 77)])
def test_dense_updates_are_made_on_cuda_alone(
    device: str, dense_mb: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def resident(base: BaseModel, store: AdapterStore, **options: object) -> SimpleNamespace:
        given.update(options)
        return SimpleNamespace()

    monkeypatch.setattr(building, "ResidentAdapters", resident)
    base = dataclasses.replace(tiny_base("llama"), device=torch.device(device))
    settings = Settings(home=tmp_path, dense_memory_mb=77)
    building._adapters(settings, base, AdapterStore(tmp_path))
    assert given["dense_mb"] == dense_mb
