"""The least time that a step can take: bytes over bandwidth, or operations over the product rate.

The same run measures both, by one large copy and one large product. Counted are the weights and the
output head, the keys and values that are read, every distinct adapter's vectors once a step, and
the random matrices of every basis once a step, though each layer reads them.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.support.crowd import SEED, Kind
from server.adapters.memory.matrices import BasisSource, need_of
from server.adapters.methods.basis_id import BasisId
from server.bases.model import BaseModel


@dataclass(frozen=True)
class Chip:
    """A device's measured bandwidth in bytes and rate in operations per second."""

    bandwidth: float
    rate: float

    def seconds(self, work: "Work") -> float:
        return max(work.bytes / self.bandwidth, work.operations / self.rate)

    def about(self) -> str:
        return (
            f"measured: {self.bandwidth / 1e12:.3g} TB/s by a copy, "
            f"{self.rate / 1e12:.3g} TFLOP/s by a product"
        )


@dataclass(frozen=True)
class Work:
    """The bytes and operations that a step cannot avoid."""

    bytes: int
    operations: int


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured_chip(device: torch.device, dtype: torch.dtype) -> Chip:
    """On CUDA a copy of 4 GiB and a product of 8192 cubed; little ones on a CPU."""
    entries, side = (2**31, 8192) if device.type == "cuda" else (2**20, 256)
    bandwidth = _bandwidth(torch.ones(entries, dtype=dtype, device=device))
    a, b = torch.randn(2, side, side, dtype=dtype, device=device)
    out = torch.empty_like(a)
    return Chip(bandwidth, 2 * side**3 / _best_s(lambda: torch.mm(a, b, out=out), device))


def _bandwidth(old: Tensor) -> float:
    new = torch.empty_like(old)
    return 2 * old.nbytes / _best_s(lambda: new.copy_(old), old.device)


def _best_s(action: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            action()
        synchronize(device)
        times.append((time.perf_counter() - start) / 10)
    return min(times)


def step_work(
    base: BaseModel, tokens: int, keys: int, logits: int, adapters: Sequence[tuple[Kind, int]]
) -> Work:
    """One step of `tokens` tokens.

    Args:
        keys: that are seen, summed over the tokens.
        logits: how many tokens get logits.
        adapters: the kind and number (any that tells adapters apart) of every adapted token's.
    """
    size, config = base.dtype.itemsize, base.model.config
    weights = sum(it.in_features * it.out_features for it in base.targets.values())
    head = config.hidden_size * config.vocab_size
    query_width = config.num_attention_heads * base.head_dim * base.num_layers
    kv_width = 2 * base.num_kv_heads * base.head_dim * base.num_layers
    read = keys if logits == tokens else tokens  # a prompt's keys are read once for many tokens
    by_kind = Counter(kind for kind, _ in adapters)
    source = BasisSource(base)
    vectors = sum(kind.entries(base) for kind, _ in set(adapters))
    bases: Counter[BasisId] = Counter()
    for kind in by_kind:
        basis = kind.how.basis(SEED)
        need = need_of(kind.how, base, kind.paths(base), kind.rank)
        bases[basis] = max(bases[basis], source.bytes_of(basis, need))
    return Work(
        (weights + head + read * kv_width + vectors) * size + bases.total(),
        2 * (weights * tokens + head * logits)
        + 4 * keys * query_width
        + sum(_operations(base, kind) * count for kind, count in by_kind.items()),
    )


def _operations(base: BaseModel, kind: Kind) -> int:
    """Of one token through the thin products of one adapter."""
    total = 0
    for path in kind.paths(base):
        linear = base.targets[path]
        inner = max(kind.rank, kind.how.basis_size(linear, kind.rank).b_rank)
        total += 2 * inner * (linear.in_features + linear.out_features)
    return total
