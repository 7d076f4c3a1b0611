"""RandLoRA (Albert et al., arXiv 2502.00987): an update of full rank from trained diagonals.

    y = W x + sum_j B_j diag(L[j]) A diag(G[j]) x      j < n = ceil(min(in, out) / rank)

A [rank, min] and the blocks B_j [max, rank] are frozen and random; L [n, rank] ("lambda") and
G [n, min] ("gamma") are trained. Block j is columns j*rank to (j+1)*rank of the endless B, so where
rank does not divide min the last block is as whole as the others: it reads further columns, and the
n * rank columns together are min or more. Where out < in, the update is the transpose of the one
that is built for [in, out].

The sum has full rank for almost all L and G if every one of the `min` features is read by some row
of A. A ternary A leaves (1 - 1 / sparsity)^rank of them out, which is many where the sparsity is
not small compared with the rank.

Knows how the numbers are defined and started; `randlora_training` and `randlora_serving` know how
to apply them fast.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import torch
from torch import Tensor

from server.adapters.methods.basis_id import PEFT_PAIRING, BasisId
from server.adapters.methods.method import (
    BasisPair,
    BasisPairs,
    BasisSize,
    Delta,
    Layers,
    Matrices,
    Method,
    Vectors,
)
from server.adapters.methods.method_kind import MethodKind, Options, PeftForm
from server.adapters.methods.randlora.randlora_frozen import Frozen, block_count
from server.adapters.methods.randlora.randlora_peft import read_randlora, write_randlora
from server.adapters.methods.randlora.randlora_serving import ServedDelta, spans_of
from server.adapters.methods.randlora.randlora_training import Dropped, TrainedDelta
from server.bases.model import TargetLinear
from server.bases.seeded_matrices import SPEC, Basis, ternary_spec
from server.errors import InvalidAdapter
from server.jobs.queue.method_spec import MethodSpec, Variant

DENSE: Final = "dense"

GAMMA_INITIAL: Final = 2.0**-8
"""Where every entry of gamma starts: a learning rate of a hundredth of it moves it in 100 steps."""

GAIN: Final = 20.0
"""How large the update is per unit of the trained lambda, were the bases of variance one.

At the start it is GAIN / min(in, out) times sum_j B_j diag(lambda) A. PEFT's defaults give the
same: alpha / rank = 20 and gamma = 1 / min.
"""


@dataclass(frozen=True)
class RandLora(Method):
    """The method `randlora`; see `server.adapters.methods.method.Method`.

    Args:
        sparsity: of ternary bases, see `server.bases.seeded_matrices.ternary_spec`; None for dense
        ones. pairing: which column of B meets which row of A: "" for the paper's, "peft" for
        PEFT's.

    Raises:
        InvalidAdapter: a sparsity or pairing that does not exist.
    """

    sparsity: float | None = None
    pairing: str = ""

    name: ClassVar[str] = "randlora"
    mergeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.pairing not in ("", PEFT_PAIRING):
            raise InvalidAdapter(
                f"pairing {self.pairing!r} is unknown: leave it out, or give {PEFT_PAIRING!r}"
            )
        if self.sparsity is not None:
            try:
                ternary_spec(self.sparsity)
            except ValueError as error:
                raise InvalidAdapter(str(error)) from error

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "RandLora":
        """Read `sparsity` ("dense", or a number) and `pairing`; other keys are not its own.

        Raises:
            InvalidAdapter: a value that is neither.
        """
        text = options.get("sparsity", DENSE)
        try:
            sparsity = None if text == DENSE else float(text)
        except ValueError as error:
            raise InvalidAdapter(
                f"sparsity {text!r} is neither {DENSE!r} nor a number such as 3 or 6"
            ) from error
        return cls(sparsity, options.get("pairing", ""))

    @property
    def options(self) -> dict[str, str]:
        options = {}
        if self.sparsity is not None:
            options["sparsity"] = repr(float(self.sparsity)).removesuffix(".0")
        if self.pairing:
            options["pairing"] = self.pairing
        return options

    def basis(self, seed: int) -> BasisId:
        return BasisId(self._spec, seed, pairing=self.pairing)

    def shapes(self, linear: TargetLinear, rank: int) -> dict[str, tuple[int, ...]]:
        n = block_count(linear, rank)
        return {"lambda": (n, rank), "gamma": (n, _narrow(linear))}

    def basis_size(self, linear: TargetLinear, rank: int) -> BasisSize:
        return BasisSize(rank, block_count(linear, rank) * rank)

    def initial(self, linear: TargetLinear, rank: int, start: Matrices) -> dict[str, Tensor]:
        shapes = self.shapes(linear, rank)
        return {
            "lambda": torch.zeros(shapes["lambda"]),
            "gamma": torch.full(shapes["gamma"], GAMMA_INITIAL),
        }

    def unit(self, linear: TargetLinear, rank: int) -> dict[str, float]:
        """Lambda carries what the papers put into the bases' spread, the scaling and gamma's start.

        B A of our bases has the variance of one entry as its spread where normalised ones have one.
        gamma starts at the same number at every width, so that a learning rate is the same part of
        it everywhere, and 1 / min is here.
        """
        spread = Basis(0, self._spec).variance
        gain = GAIN / (_narrow(linear) * GAMMA_INITIAL * spread)
        return {"lambda": 2.0 ** round(math.log2(gain)), "gamma": 1.0}

    def fold(
        self, linear: TargetLinear, rank: int, vectors: Vectors, scale: float
    ) -> dict[str, Tensor]:
        lambda_ = vectors["lambda"]
        return {"lambda": lambda_ if scale == 1 else lambda_ * scale, "gamma": vectors["gamma"]}

    def deltas(
        self, layers: Layers, rank: int, bases: BasisPairs, dropout: float = 0.0
    ) -> dict[str, Delta]:
        frozen = {
            path: self._frozen(linear, rank, bases[path]) for path, (linear, _) in layers.items()
        }
        tokens = next(iter(layers.values()))[1]  # all layers of a group read the same
        if tokens.rows is None:
            dropped = Dropped(dropout)
            return {
                path: TrainedDelta(frozen[path], rows, dropped)
                for path, (_, rows) in layers.items()
            }
        spans = spans_of(tokens.runs, rank, tokens.rows.device)
        return {path: ServedDelta(frozen[path], rows, spans) for path, (_, rows) in layers.items()}

    def merged(self, linear: TargetLinear, rank: int, pair: BasisPair, vectors: Vectors) -> Tensor:
        """See `Method.merged`. Takes 2 n * rank * in * out operations."""
        return self._frozen(linear, rank, pair).update(vectors["lambda"], vectors["gamma"])

    def dense(
        self, linear: TargetLinear, rank: int, matrices: Matrices, vectors: Vectors, scale: float
    ) -> Tensor:
        """`scale * sum_j B_j diag(L[j]) A diag(G[j])`, transposed where out < in.

        PEFT pairs column c of B with row c // n of A, lambda[c % n, c // n] and gamma[c % n]: block
        j is then every n-th column, from j on.
        """
        lambda_, gamma = vectors["lambda"].double(), vectors["gamma"].double()
        n = block_count(linear, rank)
        narrow, wide = sorted((linear.in_features, linear.out_features))
        a = matrices.a(rank, narrow, torch.float64)
        b = matrices.b(wide, n * rank, torch.float64)
        update = torch.zeros(wide, narrow, dtype=torch.float64)
        for j in range(n):
            columns = slice(j, None, n) if self.pairing else slice(j * rank, (j + 1) * rank)
            update += b[:, columns] @ torch.diag(lambda_[j]) @ a @ torch.diag(gamma[j])
        return scale * (update if linear.in_features <= linear.out_features else update.t())

    def _frozen(self, linear: TargetLinear, rank: int, pair: BasisPair) -> Frozen:
        return Frozen.of(linear, rank, pair, by_rank=self.pairing == PEFT_PAIRING)

    @property
    def _spec(self) -> str:
        return SPEC if self.sparsity is None else ternary_spec(self.sparsity)


def _narrow(linear: TargetLinear) -> int:
    return min(linear.in_features, linear.out_features)


def _settled(options: Options, linears: Iterable[TargetLinear]) -> Options:
    """A sparsity of "sqrt" is the root of the largest min(in, out) of the targets."""
    if options.get("sparsity") != "sqrt":
        return options
    return {**options, "sparsity": math.sqrt(max(_narrow(linear) for linear in linears))}


_TRIED: Final = "rate tried on two bases, one file; rank is PEFT's; the paper: 1e-4"
RANDLORA: Final = MethodKind(
    MethodSpec("randlora", (Variant(None, 32, 1e-3, _TRIED, sparsity=DENSE),)),
    RandLora.of,
    settled=_settled,
    peft=PeftForm(
        "RANDLORA", partial(read_randlora, RandLora(pairing=PEFT_PAIRING)), write_randlora
    ),
)
