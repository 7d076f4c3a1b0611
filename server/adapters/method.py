"""What a method must say of itself, so that everything else here serves it without knowing it.

Knows no method; `server.adapters.methods.METHODS` lists those that exist.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from server.bases.model import TargetLinear
from server.bases.seeded import Basis

Shapes = Mapping[str, tuple[int, ...]]
Vectors = Mapping[str, Tensor]


@dataclass(frozen=True)
class BasisSize:
    """How much of a basis is read: rows of A, columns of B."""

    a_rank: int
    b_rank: int


@dataclass(frozen=True, eq=False)
class BasisPair:
    """The matrices of one seed as products want them, in one dtype on one device.

    `a` [a_rank, widest in] is A. `bt` [b_rank, widest out] is B transposed, so that every rank and
    every layer reads leading rows and columns of both: views, never copies.
    """

    a: Tensor
    bt: Tensor


class Rows(Protocol):
    """The vectors that the tokens of a step read in one layer, in the dtype of the base."""

    @property
    def slots(self) -> Tensor | None:
        """The bank's row of each token, int64 [tokens]; None in training: all read the same."""
        ...

    def stored(self, name: str) -> Tensor:
        """[slots, *shape], or [*shape] in training: for what is too large to gather per token."""
        ...

    def per_token(self, name: str) -> Tensor:
        """[tokens, *shape], or [*shape] in training."""
        ...


class Delta(Protocol):
    """What one group of adapters adds to one linear."""

    def __call__(self, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        """Return `y` plus every token's delta; may overwrite `y`.

        Args:
            x: the linear's input as the model passed it: siblings are given the same object.
            rows: the same, [tokens, in].
            y: the linear's own output, [tokens, out].
        """
        ...


class Method(Protocol):
    """One way to adapt a linear with a few trained vectors over seeded matrices."""

    @property
    def name(self) -> str: ...

    def shapes(self, linear: TargetLinear, rank: int) -> Shapes:
        """The trained vectors of one layer."""
        ...

    def room(self, linear: TargetLinear, max_rank: int) -> Shapes:
        """Shapes that hold any rank up to `max_rank` in their leading corner.

        Zeros in the rest of the room must leave the delta as it is.
        """
        ...

    def basis_size(self, rank: int) -> BasisSize:
        """How much of a basis an adapter of this rank reads in its most demanding layer."""
        ...

    def group(self, seed: int, rank: int) -> Hashable:
        """Adapters with equal keys share their matrix products, at the largest rank among them."""
        ...

    def initial(
        self, linear: TargetLinear, rank: int, options: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """The vectors as stored, before training: they leave the base model as it is."""
        ...

    def unit(self, linear: TargetLinear, rank: int) -> Mapping[str, float]:
        """Powers of two: a vector as stored is the trained parameter times its unit.

        A basis is not normalised, so a step of one learning rate would mean something else at every
        rank and width. Units undo that, exactly, and leave the stored formula alone.
        """
        ...

    def fold(self, vectors: Vectors, scale: float) -> dict[str, Tensor]:
        """Stored vectors with the adapter's scale folded in, as banks hold them."""
        ...

    def deltas(
        self,
        layers: Mapping[str, tuple[TargetLinear, Rows]],
        rank: int,
        basis: BasisPair,
        dropout: float = 0.0,
    ) -> dict[str, Delta]:
        """The fast path: one delta per layer for one group, whose rows have its largest rank.

        `dropout` is the part of `x` that the deltas do not see while gradients are recorded.
        """
        ...

    def dense(
        self, linear: TargetLinear, rank: int, basis: Basis, vectors: Vectors, scale: float
    ) -> Tensor:
        """The plain reference: what the adapter adds to the weight, float64 [out, in]."""
        ...
