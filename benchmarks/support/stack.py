"""A server's engine without HTTP, and random adapters to serve with it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters_store.manifest import AdapterRef, Manifest
from adapters_store.store import AdapterStore
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.bases.short_names import PORCH
from server.config import Settings
from server.metrics import Metrics
from server.scheduler.loop import ServingLoop
from server.training.run.defaults import TrainPlan
from server.wiring.building import open_records, running_engine

OWNER = "default"
B_SPREAD = 0.02  # of the random vectors `b`; figures here do not depend on it


@dataclass(frozen=True)
class Stack:
    """A running engine over a store of its own."""

    base: BaseModel
    adapters: ResidentAdapters
    loop: ServingLoop
    store: AdapterStore


@contextmanager
def running_stack(settings: Settings) -> Iterator[Stack]:
    """The engine that `verandah serve` would run with these settings."""
    with (
        open_records(settings) as records,
        running_engine(settings, records, Metrics("bench"), lambda _: None) as engine,
    ):
        yield Stack(engine.base, engine.adapters, engine.loop, records.store)


def settings_for(home: str, **changes: object) -> Settings:
    """Settings of Porch, with a home of their own and no worker; each round computes its prompts
    anew."""
    ours = {"model": PORCH, "home": Path(home), "worker": False, "prefix_cache": False}
    return Settings.model_validate({**ours, **changes})


class RandomAdapters:
    """Adapters as the trainer would make them, with random `b`; `rank` 0: the trainer's default."""

    def __init__(self, base: BaseModel, rank: int = 0, targets: Sequence[str] = ()) -> None:
        plan = TrainPlan(seed=0)
        chosen = list(targets) or plan.targets
        adapter = TrainableAdapter(
            base, plan.method, rank or plan.rank, plan.basis_seed, chosen, {}
        )
        self.manifest: Manifest = adapter.manifest(created_at=int(time.time()), provenance={})
        self._tensors = adapter.tensors()

    def tensors(self, seed: int) -> dict[str, Tensor]:
        """One adapter's vectors."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: value
            if name.endswith(".d")
            else B_SPREAD * torch.randn(value.shape, generator=generator)
            for name, value in self._tensors.items()
        }

    def publish(self, store: AdapterStore, count: int) -> list[AdapterRef]:
        """`count` adapters named `bench-00000` and on."""
        return [
            store.publish(OWNER, f"bench-{number:05}", self.manifest, self.tensors(number))
            for number in range(count)
        ]

    def about(self) -> str:
        """Method, rank and targets, in a line."""
        linears = sorted({path.rsplit(".", 1)[-1] for path in self.manifest.targets})
        return (
            f"adapters: {self.manifest.method}, rank {self.manifest.rank}, "
            f"{len(self.manifest.targets)} linears ({', '.join(linears)})"
        )
