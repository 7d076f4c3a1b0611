"""A porting over a tiny base that is served, with a store of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters_store.manifest import AdapterRef
from server.adapters.porting.service import PortingService
from tests.adapters.served import Served
from tests.cli.conftest import model_folder
from tests.models import Kind, tiny_base
from tests.porting.peft_side import CONFIG, TOKENS, WEIGHTS

__all__ = ["model_folder"]


@dataclass
class Place:
    """Where adapters come in, are served and go out."""

    served: Served
    porting: PortingService
    root: Path

    def import_adapter(self, folder: Path, name: str = "pet", **told: str) -> AdapterRef:
        with (folder / CONFIG).open("rb") as config, (folder / WEIGHTS).open("rb") as weights:
            return self.porting.import_adapter("ann", name, config, weights, **told)

    def logits(self, ref: AdapterRef) -> Tensor:
        """What the engine's mixed batch answers, beside a row of the base."""
        slot = self.served.acquire(ref)
        try:
            return self.served.logits(torch.stack([TOKENS, TOKENS]), [0, slot])[1]
        finally:
            self.served.adapters.release(ref)

    def listing(self) -> list[str]:
        """Every file and folder under the home."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))


MakePlace = Callable[..., Place]


@pytest.fixture
def place(tmp_path: Path) -> MakePlace:
    def place(kind: Kind = "llama", *, max_rank: int = 32, **model: Any) -> Place:
        root = tmp_path / f"home-{kind}"
        base = tiny_base(kind, **model)
        served = Served(base, root / "adapters", max_rank=max_rank)
        porting = PortingService(base, served.store, "unused", root / "porting", max_rank=max_rank)
        return Place(served, porting, root)

    return place
