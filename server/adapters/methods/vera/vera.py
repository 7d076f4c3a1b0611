"""VeRA (Kopiczko et al., arXiv 2310.11454, equation 2): two trained vectors over frozen matrices.

    y = W x + b * (B (d * (A x)))        d: [rank], b: [out]

A and B are seeded and shared by every layer and adapter, so one product by each serves a batch of
any adapters; a row is its own only in `d` and `b`. Ranks nest: an adapter of a smaller rank reads
leading rows of A, and zeros in `d` silence the others.

The ablations of the paper's section 4.6 are variants. In two of them one vector is trained and
stored; the other is a constant that `fold` fills in, so that they share products with every other
VeRA adapter. In a third, every linear reads matrices of its own.

Knows how the numbers are defined and started; `vera_product` applies them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Final

import torch
from torch import Tensor

from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.method import (
    BasisPairs,
    BasisSize,
    Delta,
    Factors,
    KernelFamily,
    Layers,
    Matrices,
    Method,
    Vectors,
)
from server.adapters.methods.method_kind import MethodKind, PeftForm
from server.adapters.methods.vera.vera_peft import read_vera, write_vera
from server.adapters.methods.vera.vera_product import vera_deltas
from server.bases.model import TargetLinear
from server.bases.seeded_matrices import SPEC
from server.errors import InvalidAdapter
from server.jobs.queue.method_spec import MethodSpec, Variant

D_INITIAL: Final = 0.1

_STORED: Final[Mapping[str, tuple[str, ...]]] = {"d+b": ("d", "b"), "d": ("d",), "b": ("b",)}
_PER_LAYER: Final[Mapping[str, bool]] = {"shared": False, "per-layer": True}


@dataclass(frozen=True)
class Vera(Method):
    """The method `vera`; see `server.adapters.methods.method.Method`.

    Args:
        trained: "d+b"; "d", where every entry of b is `_spread`; or "b", where every entry of d is
            `d_initial`.
        d_initial: where every entry of d starts (the paper's 0.1). Where d alone is trained it
            starts at 0, because b does not.
        per_layer: every linear reads matrices of its own rather than the shared ones.

    Raises:
        InvalidAdapter: a variant that does not exist.
    """

    trained: str = "d+b"
    d_initial: float = D_INITIAL
    per_layer: bool = False

    name: ClassVar[str] = "vera"
    whole_batch: ClassVar[bool] = True
    kernels: ClassVar[KernelFamily | None] = KernelFamily.SCALED_PAIR

    def __post_init__(self) -> None:
        if self.trained not in _STORED:
            raise InvalidAdapter(
                f"option trained={self.trained!r} is none of vera's: choose one of "
                f"{', '.join(_STORED)}"
            )
        if not math.isfinite(self.d_initial):
            raise InvalidAdapter(f"option d_initial={self.d_initial} is not finite")

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "Vera":
        """The variant that a manifest's options name; keys that are not VeRA's are ignored.

        Raises:
            InvalidAdapter: a value that VeRA does not have.
        """
        basis = options.get("basis", "shared")
        if basis not in _PER_LAYER:
            raise InvalidAdapter(
                f"option basis={basis!r} is none of vera's: choose one of {', '.join(_PER_LAYER)}"
            )
        d_initial = options.get("d_initial", str(D_INITIAL))
        try:
            start = float(d_initial)
        except ValueError as error:
            raise InvalidAdapter(f"option d_initial={d_initial!r} is not a number") from error
        return cls(options.get("trained", "d+b"), start, _PER_LAYER[basis])

    @property
    def options(self) -> dict[str, str]:
        return {
            "trained": self.trained,
            "d_initial": str(self.d_initial),
            "basis": "per-layer" if self.per_layer else "shared",
        }

    def basis(self, seed: int) -> BasisId:
        return BasisId(SPEC, seed, per_layer=self.per_layer)

    def shapes(self, linear: TargetLinear, rank: int) -> dict[str, tuple[int, ...]]:
        shapes = self.padded_shapes(linear, rank)
        return {name: shapes[name] for name in _STORED[self.trained]}

    def padded_rank(self, rank: int, max_rank: int) -> int:
        return max_rank

    def padded_shapes(self, linear: TargetLinear, padded_rank: int) -> dict[str, tuple[int, ...]]:
        return {"d": (padded_rank,), "b": (linear.out_features,)}

    def basis_size(self, linear: TargetLinear, rank: int) -> BasisSize:
        return BasisSize(rank, rank)

    def initial(self, linear: TargetLinear, rank: int, start: Matrices) -> dict[str, Tensor]:
        """Raises InvalidAdapter where d and b would both be 0, from where no gradient leads."""
        if self.trained == "d":
            return {"d": torch.zeros(rank)}
        if self.d_initial == 0:
            raise InvalidAdapter("option d_initial=0 would never learn: choose another number")
        b = torch.zeros(linear.out_features)
        return (
            {"b": b} if self.trained == "b" else {"d": torch.full((rank,), self.d_initial), "b": b}
        )

    def unit(self, linear: TargetLinear, rank: int) -> dict[str, float]:
        """`b` is trained as if A and B had the paper's Kaiming spread; see `_spread`."""
        units = {"d": 1.0, "b": _spread(linear, rank)}
        return {name: units[name] for name in _STORED[self.trained]}

    def fold(
        self, linear: TargetLinear, rank: int, vectors: Vectors, scale: float
    ) -> dict[str, Tensor]:
        d, b = self._filled(linear, rank, vectors)
        return {"d": d, "b": b if scale == 1 else b * scale}

    def deltas(
        self, layers: Layers, rank: int, bases: BasisPairs, dropout: float = 0.0
    ) -> dict[str, Delta]:
        return vera_deltas(layers, rank, bases, dropout)

    def factors(
        self, linear: TargetLinear, rank: int, matrices: Matrices, vectors: Vectors, scale: float
    ) -> Factors:
        """`scale * diag(b) B`, and `diag(d) A`."""
        d, b = (vector.double() for vector in self._filled(linear, rank, vectors))
        wide = matrices.b(linear.out_features, rank, torch.float64)
        narrow = matrices.a(rank, linear.in_features, torch.float64)
        return scale * b[:, None] * wide, d[:, None] * narrow

    def _filled(self, linear: TargetLinear, rank: int, vectors: Vectors) -> tuple[Tensor, Tensor]:
        """d and b, the one that is not stored as its constant."""
        if self.trained == "d":
            d = vectors["d"]
            return d, d.new_full((*d.shape[:-1], linear.out_features), _spread(linear, rank))
        b = vectors["b"]
        if self.trained == "b":
            return b.new_full((*b.shape[:-1], rank), self.d_initial), b
        return vectors["d"], b


def _spread(linear: TargetLinear, rank: int) -> float:
    """The power of two by which B A falls short of the paper's spread.

    Kaiming's variances are 2/in and 2/rank where ours are 1/3, so B A is 6 / sqrt(in rank) times
    as large there: rounded to a power of two, which a float takes without rounding.
    """
    exponent: int = round(math.log2(6 / math.sqrt(linear.in_features * rank)))
    return math.ldexp(1.0, exponent)


_BOTH: Final = Variant(
    "d+b",
    rank=64,
    learning_rate=1e-1,
    basis="shared",
    d_initial=D_INITIAL,
    source="measured on two bases, decision 5; the paper: rank 256, 1e-2",
)
_AS_BOTH: Final = "as d+b; tried on two bases, one file"
_SPEC: Final = MethodSpec(
    Vera.name,
    (
        _BOTH,
        replace(_BOTH, trained="d", d_initial=None, source=_AS_BOTH),  # there d begins at 0
        replace(_BOTH, trained="b", learning_rate=3e-1, source=_AS_BOTH),
    ),
    nonzero=("d_initial",),  # neither d nor b would ever learn
)
VERA: Final = MethodKind(
    _SPEC, Vera.of, peft=PeftForm("VERA", partial(read_vera, Vera()), write_vera)
)
