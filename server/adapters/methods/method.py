"""What a method provides, so that all other parts serve and train it without knowing it.

Knows no method. `server.adapters.methods.registry` lists those that exist.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.row_shares import Shares
from server.bases.model import TargetLinear

Shapes = Mapping[str, tuple[int, ...]]
Vectors = Mapping[str, Tensor]
Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BasisSize:
    """How much of a basis is read: rows of A, columns of B. Zeros: nothing."""

    a_rank: int
    b_rank: int


@dataclass(frozen=True, eq=False)
class BasisPair:
    """The matrices that a linear reads as products want them, in one dtype on one device.

    `a` [a_rank, widest] is A. `bt` [b_rank, widest] is B transposed, so that every rank and every
    layer reads leading rows and columns of both: views, never copies. Linears that share matrices
    get the same object.
    """

    a: Tensor
    bt: Tensor


BasisPairs = Mapping[str, BasisPair]
"""The pair of each linear, by module path."""


class Matrices(Protocol):
    """A and B of one linear, made on demand: `server.bases.seeded_matrices.Basis`, or an imported
    basis."""

    def a(self, rank: int, in_features: int, dtype: torch.dtype) -> Tensor:
        """`A[:rank, :in_features]`."""

    def b(self, out_features: int, rank: int, dtype: torch.dtype) -> Tensor:
        """`B[:out_features, :rank]`."""


class KernelFamily(Enum):
    """Which of `server.adapters.kernels` apply a method (CUDA), by the vectors of its rows."""

    SCALED_PAIR = "b * (B (d * (A x))) with vectors d and b of an adapter, A and B of its basis"
    LOW_RANK = "B (A x) with matrices A and B of an adapter, or one of them of its basis"


class Run(NamedTuple):
    """Neighbouring tokens of one adapter: tokens `start` to `stop` read the stored row `row`."""

    row: int
    start: int
    stop: int


class Rows(Protocol):
    """The vectors that the tokens of a step read in one layer, in the dtype of the base."""

    @property
    def rows(self) -> Tensor | None:
        """The stored row of each token, int64 [tokens]; None in training: all read the same."""

    @property
    def runs(self) -> Sequence[Run]:
        """The same, as runs; empty in training."""

    @property
    def shares(self) -> Shares | None:
        """In training, each adapter's rows of the batch; None: all rows are one adapter's."""

    def stored(self, name: str) -> Tensor:
        """[many, *shape], or [*shape] in training: for what is too large to gather per token."""

    def per_token(self, name: str) -> Tensor:
        """[tokens, *shape], or [*shape] in training."""


class Delta(Protocol):
    """What one group of adapters adds to one linear."""

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        """Return `y` plus every token's delta; may overwrite `y` unless gradients are recorded.

        Args:
            x: the linear's input as the model passed it; linears with one input get one object.
            rows: the same, [tokens, in].
            y: the linear's own output, [tokens, out].
        """


Layers = Mapping[str, tuple[TargetLinear, Rows]]
"""Linears and the vectors that their tokens read, by module path."""


class Method(ABC):
    """One way to adapt a linear with trained vectors, most of them over frozen random matrices.

    A method is a small frozen value: its variants (what is trained, how) are its fields.
    """

    whole_batch: ClassVar[bool] = False
    """Whether one product serves rows of other adapters and of the base as well.

    True: they take part and read zeros, so that one product serves any batch and adapters of any
    ranks and targets form one group; in training, `Rows.shares` may be several adapters'. False:
    its deltas see its own rows alone, and a group has one padded rank and one set of targets.
    """
    kernels: ClassVar[KernelFamily | None] = None
    """The kernels that apply it on CUDA; None: its own `deltas` run there as well."""
    mergeable: ClassVar[bool] = False
    """Whether its busiest adapters are worth an update as a whole matrix; see `merged`."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def options(self) -> Mapping[str, str]:
        """The variant as a manifest's options; `method_named` reads it back."""

    @abstractmethod
    def basis(self, seed: int) -> BasisId:
        """The matrices that a new adapter of this seed reads."""

    @abstractmethod
    def shapes(self, linear: TargetLinear, rank: int) -> Shapes:
        """The trained vectors of one layer, as stored in a file."""

    def padded_rank(self, rank: int, max_rank: int) -> int:
        """The rank, padding included, at which an adapter of this rank lies in device memory.

        Adapters with equal padded ranks may share products. The zeros of the padding must leave the
        delta as it is.
        """
        return rank

    def padded_shapes(self, linear: TargetLinear, padded_rank: int) -> Shapes:
        """The tensors that `fold` gives for one layer, at the padded rank."""
        return self.shapes(linear, padded_rank)

    @abstractmethod
    def basis_size(self, linear: TargetLinear, rank: int) -> BasisSize:
        """How much of its basis one layer reads."""

    @abstractmethod
    def initial(self, linear: TargetLinear, rank: int, start: Matrices) -> dict[str, Tensor]:
        """The vectors as stored, before training: they leave the base model as it is.

        `start` is this linear's own streams of the adapter's seed, for what begins at random.
        """

    def unit(self, linear: TargetLinear, rank: int) -> Mapping[str, float]:
        """Powers of two: a vector as stored is the trained parameter times its unit.

        A basis is not normalised, so a step of one learning rate would mean something else at every
        rank and width. Units undo that, exactly, and leave the stored formula alone. By default
        they are 1.
        """
        return dict.fromkeys(self.shapes(linear, rank), 1.0)

    def default_scale(self, rank: int) -> float:
        """The scale of a new adapter, one number for all its layers."""
        return 1.0

    @abstractmethod
    def fold(
        self, linear: TargetLinear, rank: int, vectors: Vectors, scale: float
    ) -> dict[str, Tensor]:
        """Stored vectors as deltas read them: the scale folded in, what is not stored filled in.

        Differentiable: training reads its parameters through it. What it does never depends on the
        numbers; a vector that it leaves as it is, it gives as the same object.
        """

    @abstractmethod
    def deltas(
        self, layers: Layers, rank: int, bases: BasisPairs, dropout: float = 0.0
    ) -> dict[str, Delta]:
        """The fast path: one delta per layer for one group.

        Args:
            rank: of the vectors in the rows: the group's largest, or the padded one.
            dropout: the part of `x` that the deltas do not see while gradients are recorded.
        """

    def factors(
        self, linear: TargetLinear, rank: int, matrices: Matrices, vectors: Vectors, scale: float
    ) -> Factors | None:
        """The thin product that `dense` is, as in an ordinary LoRA; None: it is not one.

        Returns: float64 [out, rank] and [rank, in].
        """
        return None

    def dense(
        self, linear: TargetLinear, rank: int, matrices: Matrices, vectors: Vectors, scale: float
    ) -> Tensor:
        """The plain reference: what the adapter adds to the weight, float64 [out, in]."""
        factors = self.factors(linear, rank, matrices, vectors, scale)
        assert factors is not None, "a method without factors has its own dense"
        return factors[0] @ factors[1]

    def merged(self, linear: TargetLinear, rank: int, pair: BasisPair, vectors: Vectors) -> Tensor:
        """`dense`, fast: [out, in] in the dtype and on the device of the pair, where `mergeable`.

        Args:
            vectors: as `fold` gives them.
        """
        raise NotImplementedError(f"method {self.name!r} is not mergeable")
