"""The matrices that adapters read: from what names them to tensors that products can use.

Knows no adapter. They are made on loader threads and handed to the engine's thread. Memory is
bounded in bytes: the basis that was used longest ago goes first.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from server.adapters.methods.basis_id import NO_BASIS, STORED, BasisId
from server.adapters.methods.method import Bases, BasisPair, BasisSize, Matrices, Method
from server.bases.model import BaseModel, TargetLinear
from server.bases.seeded import Basis
from server.errors import InvalidAdapter


class Foreign(Protocol):
    """Imported bases by content hash: `adapters_store.foreign.ForeignBases`."""

    def read(self, sha256: str) -> Mapping[str, Tensor]: ...

    def shapes(self, sha256: str) -> Mapping[str, tuple[int, ...]]: ...


@dataclass(frozen=True)
class BasisNeed:
    """What adapters read of a basis; `targets` matter where each layer has matrices of its own."""

    size: BasisSize
    targets: frozenset[str]

    def covers(self, other: "BasisNeed", *, per_layer: bool) -> bool:
        """Whether all that `other` reads is in here."""
        fits = self.size.a_rank >= other.size.a_rank and self.size.b_rank >= other.size.b_rank
        return fits and (not per_layer or self.targets >= other.targets)


def need_of(method: Method, base: BaseModel, targets: Iterable[str], rank: int) -> BasisNeed:
    """What one adapter reads of its basis."""
    targets = frozenset(targets)
    sizes = [method.basis_size(base.targets[path], rank) for path in targets]
    return BasisNeed(_joined_sizes(sizes), targets)


def joined(needs: Iterable[BasisNeed]) -> BasisNeed:
    """The smallest that covers them all."""
    needs = list(needs)
    size = _joined_sizes([need.size for need in needs])
    return BasisNeed(size, frozenset[str]().union(*(need.targets for need in needs)))


def _joined_sizes(sizes: list[BasisSize]) -> BasisSize:
    return BasisSize(max(s.a_rank for s in sizes), max(s.b_rank for s in sizes))


@dataclass(frozen=True, eq=False)
class StoredMatrices:
    """An imported basis: `stored_a` [rows, columns] and `stored_b` [rows, columns], whole."""

    stored_a: Tensor
    stored_b: Tensor

    def a(self, rank: int, in_features: int, dtype: torch.dtype) -> Tensor:
        return _corner("A", self.stored_a, rank, in_features, dtype)

    def b(self, out_features: int, rank: int, dtype: torch.dtype) -> Tensor:
        return _corner("B", self.stored_b, out_features, rank, dtype)


def _corner(name: str, stored: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    if rows > stored.shape[0] or columns > stored.shape[1]:
        raise InvalidAdapter(
            f"the imported basis has a {name} of shape {list(stored.shape)}, and the adapter reads "
            f"[{rows}, {columns}] of it"
        )
    return stored[:rows, :columns].to(dtype)


class BasisSource:
    """Makes matrices for one base. Thread-safe.

    Args:
        foreign: where imported bases are kept; without it, only seeded ones are made.
    """

    def __init__(self, base: BaseModel, foreign: Foreign | None = None) -> None:
        self._base = base
        self._foreign = foreign
        self._layer = {path: index for index, path in enumerate(base.targets)}

    def matrices(self, basis: BasisId, path: str) -> Matrices:
        """A and B of one linear.

        Raises:
            BasisMismatch: a spec that this build does not make.
            AdapterNotFound, AdapterCorrupt: an imported basis that is gone or damaged.
        """
        if basis.spec == STORED:
            return self._stored(basis)
        if basis.spec == NO_BASIS:
            return StoredMatrices(torch.empty(0, 0), torch.empty(0, 0))
        layer = self._layer[path] if basis.per_layer else None
        return Basis(basis.seed, basis.spec, layer)

    def bases(self, basis: BasisId, need: BasisNeed) -> Bases:
        """The pairs of all linears that may read this basis, on the CPU in the base's dtype."""
        if basis.spec == NO_BASIS:
            empty = torch.empty(0, 0, dtype=self._base.dtype)
            return dict.fromkeys(self._base.targets, BasisPair(empty, empty))
        if basis.spec == STORED:
            stored, dtype = self._stored(basis), self._base.dtype
            pair = BasisPair(stored.stored_a.to(dtype), stored.stored_b.to(dtype).t().contiguous())
            return dict.fromkeys(self._base.targets, pair)
        if basis.per_layer:
            return {
                path: self._pair(self.matrices(basis, path), need.size, _width(linear))
                for path, linear in self._base.targets.items()
                if path in need.targets
            }
        seeded = Basis(basis.seed, basis.spec)
        pair = self._pair(seeded, need.size, _widest(self._base))
        return dict.fromkeys(self._base.targets, pair)

    def bytes_of(self, basis: BasisId, need: BasisNeed) -> int:
        """Memory of what `bases` gives; imported ones count as much as is read of them."""
        if basis.per_layer:
            widths = sum(_width(self._base.targets[path]) for path in need.targets)
        else:
            widths = _widest(self._base)
        return self._base.dtype.itemsize * (need.size.a_rank + need.size.b_rank) * widths

    def stored_shapes(self, basis: BasisId) -> StoredMatrices:
        """An imported basis without its numbers (torch's meta device): one small read.

        Raises:
            AdapterNotFound, AdapterCorrupt: it is gone or damaged.
        """
        shapes = self._foreign_bases(basis).shapes(basis.sha256)
        a, b = (torch.empty(shapes[name], device="meta") for name in ("a", "b"))
        return StoredMatrices(a, b)

    def _stored(self, basis: BasisId) -> StoredMatrices:
        stored = self._foreign_bases(basis).read(basis.sha256)
        return StoredMatrices(stored["a"], stored["b"])

    def _foreign_bases(self, basis: BasisId) -> Foreign:
        if self._foreign is None:
            raise InvalidAdapter(f"imported basis {basis.sha256} cannot be read without a store")
        return self._foreign

    def _pair(self, matrices: Matrices, size: BasisSize, width: int) -> BasisPair:
        dtype = self._base.dtype
        b = matrices.b(width if size.b_rank else 0, size.b_rank, dtype)
        return BasisPair(
            a=matrices.a(size.a_rank, width if size.a_rank else 0, dtype), bt=b.t().contiguous()
        )


def _width(linear: TargetLinear) -> int:
    return max(linear.in_features, linear.out_features)


def _widest(base: BaseModel) -> int:
    return max(_width(linear) for linear in base.targets.values())


def on_device(bases: Bases, device: torch.device) -> Bases:
    """The same pairs on `device`, shared as they were; the same tensors if they are there."""
    moved = {pair: _moved(pair, device) for pair in set(bases.values())}
    return {path: moved[pair] for path, pair in bases.items()}


def _moved(pair: BasisPair, device: torch.device) -> BasisPair:
    return BasisPair(pair.a.to(device, non_blocking=True), pair.bt.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class HeldBases:
    """Bases in memory, and how much of the basis they hold."""

    bases: Bases
    need: BasisNeed


class SharedBases:
    """Bases on a base's device, one copy for all adapters that learn on them at once.

    For one thread. A basis is held as long as somebody holds what `get` gave.
    """

    def __init__(self, base: BaseModel) -> None:
        self._source = BasisSource(base)
        self._device = base.device
        self._held: WeakValueDictionary[tuple[BasisId, BasisNeed], HeldBases] = (
            WeakValueDictionary()
        )

    def get(self, basis: BasisId, need: BasisNeed) -> HeldBases:
        """The bases of adapters that read exactly this much, made if nobody holds them."""
        held = self._held.get((basis, need))
        if held is None:
            bases = on_device(self._source.bases(basis, need), self._device)
            held = self._held[basis, need] = HeldBases(bases, need)
        return held


class HostBases:
    """Bases in host memory: up to `max_bytes`, and the last in any case.

    Thread-safe; none is made twice at once.
    """

    def __init__(self, source: BasisSource, max_bytes: int, *, pinned: bool) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._pinned = pinned
        self._held: OrderedDict[BasisId, HeldBases] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def get(self, basis: BasisId, need: BasisNeed) -> HeldBases | None:
        """The bases, if they are here and cover `need`."""
        with self._lock:
            held = self._held.get(basis)
            if held is None or not held.need.covers(need, per_layer=basis.per_layer):
                return None
            self._held.move_to_end(basis)
            return held

    def ensure(self, basis: BasisId, need: BasisNeed) -> None:
        """Make them unless they are here. May take a while: call it on a loader thread."""
        with self._making:
            if self.get(basis, need) is not None:
                return
            with self._lock:
                held = self._held.get(basis)
            if held is not None:
                need = joined([need, held.need])
            bases = self._source.bases(basis, need)
            if self._pinned:
                bases = _pin(bases)
            with self._lock:
                self._held[basis] = HeldBases(bases, need)
                self._held.move_to_end(basis)
                self._shrink()

    def _shrink(self) -> None:
        sizes = {b: self._source.bytes_of(b, held.need) for b, held in self._held.items()}
        total = sum(sizes.values())
        while total > self._max_bytes and len(self._held) > 1:
            oldest, _ = self._held.popitem(last=False)
            total -= sizes[oldest]


def _pin(bases: Bases) -> Bases:
    pinned = {
        pair: BasisPair(pair.a.pin_memory(), pair.bt.pin_memory()) for pair in set(bases.values())
    }
    return {path: pinned[pair] for path, pair in bases.items()}
