"""The matrices of every seed in use: made on loader threads, handed to the engine's thread.

Knows no adapter. A pair is made at the largest rank asked for so far; smaller ranks read its
leading rows. Memory is bounded by the number of seeds: the least recently used goes first.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable

import torch

from server.adapters.method import BasisPair, BasisSize
from server.bases.model import BaseModel
from server.bases.seeded import Basis


def make_pair(base: BaseModel, seed: int, size: BasisSize) -> BasisPair:
    """The basis of one seed on the CPU, in the base's dtype, as wide as its widest linears."""
    basis = Basis(seed)
    widest_in = max(target.in_features for target in base.targets.values())
    widest_out = max(target.out_features for target in base.targets.values())
    return BasisPair(
        a=basis.a(size.a_rank, widest_in, base.dtype),
        bt=basis.b(widest_out, size.b_rank, base.dtype).t().contiguous(),
    )


def pair_bytes(base: BaseModel, size: BasisSize) -> int:
    """Memory of one pair."""
    widest_in = max(target.in_features for target in base.targets.values())
    widest_out = max(target.out_features for target in base.targets.values())
    return base.dtype.itemsize * (size.a_rank * widest_in + size.b_rank * widest_out)


def covers(pair: BasisPair, size: BasisSize) -> bool:
    """Whether the pair holds all that an adapter of this size reads."""
    return len(pair.a) >= size.a_rank and len(pair.bt) >= size.b_rank


def joined(sizes: Iterable[BasisSize]) -> BasisSize:
    """The smallest size that holds them all."""
    sizes = list(sizes)
    return BasisSize(max(s.a_rank for s in sizes), max(s.b_rank for s in sizes))


class HostPairs:
    """At most `limit` pairs in host memory; thread-safe, and never made twice at once."""

    def __init__(self, base: BaseModel, limit: int) -> None:
        self._base = base
        self._limit = limit
        self._pinned = base.device.type == "cuda"
        self._pairs: OrderedDict[int, BasisPair] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def get(self, seed: int, size: BasisSize) -> BasisPair | None:
        """The pair, if it is here and covers `size`."""
        with self._lock:
            pair = self._pairs.get(seed)
            if pair is None or not covers(pair, size):
                return None
            self._pairs.move_to_end(seed)
            return pair

    def ensure(self, seed: int, size: BasisSize) -> None:
        """Make the pair unless it is here. May take a while: call it on a loader thread."""
        with self._making:
            if self.get(seed, size) is not None:
                return
            with self._lock:
                held = self._pairs.get(seed)
            if held is not None:
                size = joined([size, BasisSize(len(held.a), len(held.bt))])
            pair = make_pair(self._base, seed, size)
            if self._pinned:
                pair = BasisPair(pair.a.pin_memory(), pair.bt.pin_memory())
            with self._lock:
                self._pairs[seed] = pair
                self._pairs.move_to_end(seed)
                while len(self._pairs) > self._limit:
                    self._pairs.popitem(last=False)


def on_device(pair: BasisPair, device: torch.device) -> BasisPair:
    """The pair on `device`; the same tensors if they are there already."""
    return BasisPair(
        pair.a.to(device, non_blocking=True),
        pair.bt.to(device, non_blocking=True),
    )
