"""LoRA and its halves: matrices of low rank, of which one may stay random and untrained.

    y = W x + scale * B (A x)            A: [rank, in], B: [out, rank], scale = alpha / rank

`lora` (Hu et al., arXiv 2106.09685, equation 3) trains both. `asymmetric-lora` (Zhu et al., arXiv
2402.16842, section 3) trains B over a frozen A, or for comparison A over a frozen B; the frozen one
is the seeded matrix, shared by all adapters of the seed, times a constant (see `_kaiming`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import torch
from torch import Tensor

from server.adapters.methods.basis_id import NO_BASIS, BasisId
from server.adapters.methods.lowrank.by_adapter import ByAdapter, own_product_tokens
from server.adapters.methods.lowrank.lora_peft import read_lora
from server.adapters.methods.method import (
    BasisPairs,
    BasisSize,
    Delta,
    Factors,
    KernelFamily,
    Layers,
    Matrices,
    Method,
    Rows,
    Vectors,
)
from server.adapters.methods.method_kind import MethodKind, PeftForm
from server.adapters.methods.projection import Projection, dropped, projections
from server.bases.model import TargetLinear
from server.bases.seeded_matrices import SPEC
from server.errors import InvalidAdapter
from server.jobs.queue.method_spec import MethodSpec, Variant

ALPHA_PER_RANK: Final = 2.0  # the asymmetry paper's alpha = 2 rank, for all variants
SMALLEST_PADDED_RANK: Final = 4

_BOTH: Final = "A+B"


@dataclass(frozen=True)
class LowRank(Method):
    """The methods `lora` and `asymmetric-lora`; see `server.adapters.methods.method.Method`.

    Args:
        trained: "A+B" is `lora`; "B" or "A" is `asymmetric-lora`, the other one being frozen.
    """

    trained: str = _BOTH

    kernels: ClassVar[KernelFamily | None] = KernelFamily.LOW_RANK

    @classmethod
    def lora(cls, options: Mapping[str, str]) -> "LowRank":
        """LoRA has no variants: `options` are other people's."""
        return cls(_BOTH)

    @classmethod
    def asymmetric(cls, options: Mapping[str, str]) -> "LowRank":
        """The variant that a manifest's options name.

        Raises:
            InvalidAdapter: `trained` is neither A nor B.
        """
        trained = options.get("trained", "B")
        if trained not in ("A", "B"):
            raise InvalidAdapter(
                f"option trained={trained!r} is none of asymmetric-lora's: choose B or A"
            )
        return cls(trained)

    @property
    def name(self) -> str:
        return "lora" if self.trained == _BOTH else "asymmetric-lora"

    @property
    def options(self) -> dict[str, str]:
        return {} if self.trained == _BOTH else {"trained": self.trained}

    def basis(self, seed: int) -> BasisId:
        return BasisId(NO_BASIS) if self.trained == _BOTH else BasisId(SPEC, seed)

    def default_scale(self, rank: int) -> float:
        return ALPHA_PER_RANK

    def shapes(self, linear: TargetLinear, rank: int) -> dict[str, tuple[int, ...]]:
        shapes = {"A": (rank, linear.in_features), "B": (linear.out_features, rank)}
        return {name: shape for name, shape in shapes.items() if name in self.trained}

    def padded_rank(self, rank: int, max_rank: int) -> int:
        """The next power of two: few different ranks, of which at most half is padding."""
        return min(_padded(rank), max_rank)

    def basis_size(self, linear: TargetLinear, rank: int) -> BasisSize:
        """At the padded rank: zeros cancel what is read beyond the adapter's own."""
        padded = _padded(rank)
        return BasisSize(
            a_rank=padded if self.trained == "B" else 0,
            b_rank=padded if self.trained == "A" else 0,
        )

    def initial(self, linear: TargetLinear, rank: int, start: Matrices) -> dict[str, Tensor]:
        """B = 0 over an A of uniform(-1, 1) / sqrt(in); A = 0 where it alone is trained."""
        zeros = {name: torch.zeros(shape) for name, shape in self.shapes(linear, rank).items()}
        if self.trained != _BOTH:
            return zeros
        a = start.a(rank, linear.in_features, torch.float32) / math.sqrt(linear.in_features)
        return {**zeros, "A": a}

    def fold(
        self, linear: TargetLinear, rank: int, vectors: Vectors, scale: float
    ) -> dict[str, Tensor]:
        """The scale, and the constant of the frozen matrix, into B; into A where it alone is."""
        folded = "A" if self.trained == "A" else "B"
        factor = scale * self._frozen(linear, rank)
        return {
            name: vector if name != folded or factor == 1 else vector * factor
            for name, vector in vectors.items()
        }

    def deltas(
        self, layers: Layers, rank: int, bases: BasisPairs, dropout: float = 0.0
    ) -> dict[str, Delta]:
        order = _order(layers, rank)
        if self.trained == _BOTH:
            return {path: _Both(rows, order, dropout) for path, (_, rows) in layers.items()}
        if self.trained == "B":
            project = projections(layers, bases, rank, dropout)
            return {
                path: _TrainedB(project[path], rows, order) for path, (_, rows) in layers.items()
            }
        return {
            path: _TrainedA(bases[path].bt[:rank, : linear.out_features], rows, order, dropout)
            for path, (linear, rows) in layers.items()
        }

    def factors(
        self, linear: TargetLinear, rank: int, matrices: Matrices, vectors: Vectors, scale: float
    ) -> Factors:
        """`scale * B`, and A, the frozen one being its seeded matrix times its constant."""
        frozen = self._frozen(linear, rank)
        a, b = vectors.get("A"), vectors.get("B")
        if a is None:
            a = frozen * matrices.a(rank, linear.in_features, torch.float64)
        if b is None:
            b = frozen * matrices.b(linear.out_features, rank, torch.float64)
        return scale * b.double(), a.double()

    def _frozen(self, linear: TargetLinear, rank: int) -> float:
        """What the seeded matrix is multiplied by; 1 where none is read."""
        if self.trained == _BOTH:
            return 1.0
        return _kaiming(linear.in_features if self.trained == "B" else rank)


def _padded(rank: int) -> int:
    return max(SMALLEST_PADDED_RANK, 1 << (rank - 1).bit_length())


def _kaiming(columns: int) -> float:
    """1 / sqrt(columns), rounded to a power of two, which folds without rounding.

    The seeded matrices are uniform in (-1, 1); LoRA's Kaiming start (a = sqrt(5)) is uniform in
    (-1, 1) / sqrt(columns).
    """
    exponent: int = round(-math.log2(columns) / 2)
    return math.ldexp(1.0, exponent)


def _order(layers: Layers, rank: int) -> ByAdapter | None:
    """How a step's tokens lie by adapter, the same in all layers of a group; None in training."""
    rows = next(iter(layers.values()))[1]
    if rows.rows is None:
        return None
    return ByAdapter(rows.rows, rows.runs, own_product_tokens(rank, rows.rows.device))


@dataclass(slots=True, eq=False)
class _TrainedB:
    """y[t] += B[t] (A x[t]), A frozen and shared."""

    _project: Projection
    _rows: Rows
    _order: ByAdapter | None

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        z, order = self._project(x, rows), self._order
        if order is None:
            return torch.addmm(y, z, self._rows.stored("B").t())
        return y.add_(order.unsort(order.product(order.sort(z), self._rows, "B")))


@dataclass(slots=True, eq=False)
class _TrainedA:
    """y[t] += Bt (A[t] x[t]), Bt [rank, out] frozen and shared."""

    _bt: Tensor
    _rows: Rows
    _order: ByAdapter | None
    _dropout: float

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        order = self._order
        if order is None:
            z = torch.mm(dropped(rows, self._dropout), self._rows.stored("A").t())
            return torch.addmm(y, z, self._bt)
        z = order.unsort(order.product(order.sort(rows), self._rows, "A"))
        return y.addmm_(z, self._bt)


@dataclass(slots=True, eq=False)
class _Both:
    """y[t] += B[t] (A[t] x[t])."""

    _rows: Rows
    _order: ByAdapter | None
    _dropout: float

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        order = self._order
        if order is None:
            z = torch.mm(dropped(rows, self._dropout), self._rows.stored("A").t())
            return torch.addmm(y, z, self._rows.stored("B").t())
        z = order.product(order.sort(rows), self._rows, "A")
        return y.add_(order.unsort(order.product(z, self._rows, "B")))


def _variant(trained: str | None, rate: float, source: str) -> Variant:
    return Variant(trained, 8, rate, source, alpha_per_rank=ALPHA_PER_RANK)


_MEASURED: Final = "rate measured on two bases"


LORA: Final = MethodKind(
    MethodSpec(
        "lora", (_variant(None, 3e-3, f"{_MEASURED}; LoRA's paper for GPT-2: rank 4, 2e-4"),)
    ),
    LowRank.lora,
    peft=PeftForm("LORA", partial(read_lora, LowRank())),
)
ASYMMETRIC_LORA: Final = MethodKind(
    MethodSpec(
        "asymmetric-lora",
        (
            _variant("B", 1e-2, f"{_MEASURED}; the paper's code: rank 8, 4e-4"),
            _variant("A", 1e-3, "rate tried on two bases, one file; the paper's code: 4e-4"),
        ),
    ),
    LowRank.asymmetric,
)
