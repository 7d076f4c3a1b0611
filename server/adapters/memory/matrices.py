"""Makes the random matrices that adapters read, from their name to tensors for products.

Knows no adapter. Loader threads make them and hand them to the engine's thread. Host memory for
them is bounded in bytes: the basis that was used longest ago goes first.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from adapters_store.imported_bases import ImportedBases
from adapters_store.manifest import STORED_BASIS
from server.adapters.methods.basis_id import NO_BASIS, BasisId
from server.adapters.methods.method import BasisPair, BasisPairs, BasisSize, Matrices, Method
from server.bases.model import BaseModel, TargetLinear
from server.bases.seeded_matrices import Basis
from server.errors import InvalidAdapter


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
    """A whole imported basis: `stored_a` and `stored_b`, both [rows, columns]."""

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
        imported: where imported bases are kept; None: only seeded ones can be made.
    """

    def __init__(self, base: BaseModel, imported: ImportedBases | None = None) -> None:
        self._base = base
        self._imported = imported
        self._layer = {path: index for index, path in enumerate(base.targets)}

    def matrices(self, basis: BasisId, path: str) -> Matrices:
        """A and B of one linear.

        Raises:
            BasisMismatch: a spec that this build does not make.
            AdapterNotFound, AdapterCorrupt: an imported basis that is gone or damaged.
        """
        if basis.spec == STORED_BASIS:
            return self._stored(basis)
        if basis.spec == NO_BASIS:
            return StoredMatrices(torch.empty(0, 0), torch.empty(0, 0))
        layer = self._layer[path] if basis.per_layer else None
        return Basis(basis.seed, basis.spec, layer)

    def pairs(self, basis: BasisId, need: BasisNeed) -> BasisPairs:
        """The pairs of all linears that may read this basis, on the CPU in the base's dtype."""
        if basis.spec == NO_BASIS:
            empty = torch.empty(0, 0, dtype=self._base.dtype)
            return dict.fromkeys(self._base.targets, BasisPair(empty, empty))
        if basis.spec == STORED_BASIS:
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
        """Memory of what `pairs` gives; imported ones count as much as is read of them."""
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
        shapes = self._imported_bases(basis).shapes(basis.sha256)
        a, b = (torch.empty(shapes[name], device="meta") for name in ("a", "b"))
        return StoredMatrices(a, b)

    def _stored(self, basis: BasisId) -> StoredMatrices:
        stored = self._imported_bases(basis).read(basis.sha256)
        return StoredMatrices(stored["a"], stored["b"])

    def _imported_bases(self, basis: BasisId) -> ImportedBases:
        if self._imported is None:
            raise InvalidAdapter(
                f"the imported basis {basis.sha256} cannot be read without a store: give the "
                "folder of adapters that it was imported into"
            )
        return self._imported

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


def on_device(pairs: BasisPairs, device: torch.device) -> BasisPairs:
    """The same pairs on `device`, shared as they were; the same tensors if they are there."""
    return _moved(pairs, lambda matrix: matrix.to(device, non_blocking=True))


def _moved(pairs: BasisPairs, move: Callable[[Tensor], Tensor]) -> BasisPairs:
    moved = {pair: BasisPair(move(pair.a), move(pair.bt)) for pair in set(pairs.values())}
    return {path: moved[pair] for path, pair in pairs.items()}


@dataclass(frozen=True, eq=False)
class LoadedBasis:
    """The matrices of one basis in memory, and how much of the basis they are."""

    pairs: BasisPairs
    need: BasisNeed


class SharedBases:
    """Bases on a base's device, one copy for all adapters that learn on them at once.

    For one thread. A basis stays as long as somebody keeps what `get` gave.
    """

    def __init__(self, base: BaseModel) -> None:
        self._source = BasisSource(base)
        self._device = base.device
        self._loaded: WeakValueDictionary[tuple[BasisId, BasisNeed], LoadedBasis] = (
            WeakValueDictionary()
        )

    def get(self, basis: BasisId, need: BasisNeed) -> LoadedBasis:
        """The matrices of adapters that read exactly this much, made if nobody keeps them."""
        loaded = self._loaded.get((basis, need))
        if loaded is None:
            pairs = on_device(self._source.pairs(basis, need), self._device)
            loaded = self._loaded[basis, need] = LoadedBasis(pairs, need)
        return loaded


class HostBases:
    """Bases in host memory: up to `max_bytes`, and the last one used in any case.

    Thread-safe. No basis is made twice at once.
    """

    def __init__(self, source: BasisSource, max_bytes: int, *, pinned: bool) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._pinned = pinned
        self._loaded: OrderedDict[BasisId, LoadedBasis] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def get(self, basis: BasisId, need: BasisNeed) -> LoadedBasis | None:
        """The matrices, if they are here and cover `need`."""
        with self._lock:
            loaded = self._loaded.get(basis)
            if loaded is None or not loaded.need.covers(need, per_layer=basis.per_layer):
                return None
            self._loaded.move_to_end(basis)
            return loaded

    def ensure(self, basis: BasisId, need: BasisNeed) -> None:
        """Make them unless they are here. May take a while: call it on a loader thread."""
        with self._making:
            if self.get(basis, need) is not None:
                return
            with self._lock:
                smaller = self._loaded.get(basis)
            if smaller is not None:
                need = joined([need, smaller.need])
            pairs = self._source.pairs(basis, need)
            if self._pinned:
                pairs = _moved(pairs, Tensor.pin_memory)
            with self._lock:
                self._loaded[basis] = LoadedBasis(pairs, need)
                self._loaded.move_to_end(basis)
                self._shrink()

    def _shrink(self) -> None:
        sizes = {b: self._source.bytes_of(b, it.need) for b, it in self._loaded.items()}
        total = sum(sizes.values())
        while total > self._max_bytes and len(self._loaded) > 1:
            oldest, _ = self._loaded.popitem(last=False)
            total -= sizes[oldest]
