"""A base with its adapters, as the engine's thread uses them."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from tests.adapters.made import Made


class Served:
    """A store, a base and its resident adapters."""

    def __init__(
        self,
        base: BaseModel,
        folder: Path,
        *,
        slots: int = 8,
        max_rank: int = 32,
        memory_mb: int = 16,
        basis_mb: int = 16,
        host_cache_mb: int = 16,
        dense_mb: int = 0,
    ) -> None:
        self.base = base
        self.store = AdapterStore(folder)
        self.adapters = ResidentAdapters(
            base,
            self.store,
            max_rank=max_rank,
            slots=slots,
            memory_mb=memory_mb,
            basis_mb=basis_mb,
            host_cache_mb=host_cache_mb,
            dense_mb=dense_mb,
        )

    def publish(self, made: Made, name: str = "pet") -> AdapterRef:
        return self.store.publish("ann", name, made.manifest, made.tensors)

    def acquire(self, ref: AdapterRef, timeout_s: float = 10) -> int:
        """Wait for a slot, as the serving loop does between steps."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            slot = self.adapters.acquire(ref)
            if slot is not None:
                return slot
            time.sleep(0.001)
        raise TimeoutError(f"{ref} got no slot")

    def logits(self, tokens: Tensor, slots: Sequence[int]) -> Tensor:
        """Logits [rows, length, vocab] of `tokens` [rows, length], one slot per row."""
        per_token = [slot for slot in slots for _ in range(tokens.shape[1])]
        with torch.inference_mode(), self.adapters.use(self.adapters.steps.batch(per_token)):
            logits: Tensor = self.base.model(tokens, use_cache=False).logits
        return logits
