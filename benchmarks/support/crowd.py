"""Thousands of adapters of every method, published and put into slots in seconds.

The cost of an adapter is its file and its memory on the device, not its contents. So a few contents
are drawn, and most adapters are hard links to their files.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Final

import torch
from torch import Tensor

from adapters_store.manifest import AdapterRef, Manifest
from adapters_store.store import AdapterStore
from server.adapters.learning.targets import resolve_targets
from server.adapters.memory.layouts import Layouts
from server.adapters.methods.basis_id import NO_BASIS
from server.adapters.methods.method import Method
from server.adapters.methods.registry import method_named
from server.adapters.residency import ResidentAdapters
from server.bases.model import BaseModel
from server.bases.seeded_matrices import Basis

OWNER: Final = "default"
MAX_RANK: Final = 256
SEED: Final = 0  # of the random matrices
_SPREAD = 0.02  # of what is drawn, in units of the method's own; small, so that nothing overflows
_CONTENT_BYTES = 2**29  # of distinct contents of one kind, and at least two of them
_MOST_CONTENTS = 24
_LOADED_AHEAD = 16  # adapters; the host cache must hold as many
_MIB = 2**20


@dataclass(frozen=True)
class Kind:
    """One method at one rank on some linears."""

    method: str
    rank: int
    targets: str | tuple[str, ...] = "all-linear"

    @property
    def label(self) -> str:
        where = "all" if self.targets == "all-linear" else ", ".join(t[0] for t in self.targets)
        return f"{self.method} r{self.rank} {where}"

    @property
    def how(self) -> Method:
        return method_named(self.method)

    def paths(self, base: BaseModel) -> tuple[str, ...]:
        return resolve_targets(base, self.targets)

    def entries(self, base: BaseModel) -> int:
        """Numbers that one adapter holds."""
        shapes = (self.how.shapes(base.targets[path], self.rank) for path in self.paths(base))
        return sum(torch.Size(shape).numel() for each in shapes for shape in each.values())

    def row_bytes(self, base: BaseModel) -> int:
        """Device memory of one adapter."""
        return Layouts(base, MAX_RANK).of(self.how, self.rank, self.paths(base)).row_bytes

    def manifest(self, base: BaseModel) -> Manifest:
        basis = self.how.basis(SEED)
        seeded = basis.spec != NO_BASIS
        return Manifest(
            method=self.method,
            rank=self.rank,
            scale=1.0,
            seed=basis.seed,
            basis_spec=basis.spec,
            basis_sha256=Basis(basis.seed, basis.spec).tile_hash() if seeded else "",
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            targets=self.paths(base),
            created_at=0,
            options=dict(self.how.options),
        )

    def tensors(self, base: BaseModel, numbers: Tensor) -> dict[str, Tensor]:
        """Vectors cut from `numbers` [entries]."""
        vectors, at = {}, 0
        for path in self.paths(base):
            linear = base.targets[path]
            units = self.how.unit(linear, self.rank)
            for name, shape in self.how.shapes(linear, self.rank).items():
                count = torch.Size(shape).numel()
                cut = numbers[at : at + count].view(shape)
                vectors[f"{path}.{name}"] = cut * (_SPREAD * units.get(name, 1.0))
                at += count
        return vectors


VERA_QV: Final = Kind("vera", 256, ("q_proj", "v_proj"))
VERA: Final = Kind("vera", 256)
LORA: Final = Kind("lora", 16)
ASYMMETRIC: Final = Kind("asymmetric-lora", 16)
RANDLORA: Final = Kind("randlora", 32)


def publish(store: AdapterStore, base: BaseModel, kind: Kind, count: int) -> list[AdapterRef]:
    """`count` adapters of one kind, each under a name of its own."""
    entries = kind.entries(base)
    contents = min(count, _MOST_CONTENTS, max(2, _CONTENT_BYTES // (4 * entries)))
    numbers = torch.randn(entries + contents, generator=torch.Generator().manual_seed(0))
    manifest = kind.manifest(base)
    label = f"{kind.method}-{kind.rank}-{len(manifest.targets)}"
    refs = [AdapterRef(OWNER, f"{label}-{number:05}", 1) for number in range(count)]
    for number, ref in enumerate(refs[:contents]):
        store.publish(ref.owner, ref.name, manifest, kind.tensors(base, numbers[number:]))
    for number, ref in enumerate(refs[contents:]):
        _link(store, refs[number % contents], ref)
    return refs


def scratch() -> str | None:
    """A folder in memory for the files of one run, or None for the system's default."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and disk_usage(memory).free > 2**33 else None


def _link(store: AdapterStore, old: AdapterRef, new: AdapterRef) -> None:
    """Another name for a file, as `AdapterStore` writes it, without waiting for the disk."""
    path = store.path(new)
    path.parent.mkdir(parents=True)
    os.link(store.path(old), path)
    (path.parents[1] / "latest").write_text("1 1\n")


def memory_mb(base: BaseModel, crowd: Iterable[tuple[Kind, int]]) -> int:
    """MiB of device memory for so many of each kind."""
    rows = sum(kind.row_bytes(base) * count for kind, count in crowd)
    widest = max(kind.row_bytes(base) for kind in (VERA, ASYMMETRIC))
    return (rows + 2 * widest) // _MIB * 101 // 100 + 2


def residents(
    base: BaseModel,
    store: AdapterStore,
    crowd: Sequence[tuple[Kind, int]],
    *,
    slots: int = 0,
    loader_threads: int = 8,
) -> ResidentAdapters:
    """Room on the device for so many of each kind; `slots` of them at most, 0: for all."""
    largest = max(kind.row_bytes(base) for kind, _ in crowd)
    return ResidentAdapters(
        base,
        store,
        max_rank=MAX_RANK,
        slots=slots or sum(count for _, count in crowd),
        memory_mb=memory_mb(base, crowd),
        basis_mb=2048,
        host_cache_mb=2 * _LOADED_AHEAD * largest // _MIB,
        loader_threads=loader_threads,
    )


def acquire(adapters: ResidentAdapters, refs: Sequence[AdapterRef]) -> list[int]:
    """Acquire and return the slot of each, as the serving loop does, but wait for it."""
    loaded, before = threading.Event(), adapters.on_loaded
    adapters.on_loaded = loaded.set
    for ref in refs[:_LOADED_AHEAD]:
        adapters.prepare(ref)
    slots = []
    for number, ref in enumerate(refs):
        if number + _LOADED_AHEAD < len(refs):
            adapters.prepare(refs[number + _LOADED_AHEAD])
        while (slot := adapters.acquire(ref)) is None:
            loaded.wait(0.05)
            loaded.clear()
        slots.append(slot)
    adapters.on_loaded = before
    return slots
