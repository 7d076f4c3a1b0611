"""Describes a training method without tensors: its options, and what a job starts with.

Knows no method. Each method's own file in `server.adapters.methods` makes its description.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from adapters_store.outside_values import shown
from server.errors import InvalidRequest

OPTIONS: Final = ("trained", "basis", "sparsity", "alpha", "d_initial")
"""Options of a job that some methods have and others lack."""


@dataclass(frozen=True)
class Variant:
    """What one method, training these vectors, starts with where a job names nothing else.

    `alpha_per_rank` times the rank is alpha. None: the variant has no such option. `source` says
    who found the numbers best, and on what. "Tried" is less than measured: a few rates, one file,
    one seed; ranks and alphas are the papers' or PEFT's.
    """

    trained: str | None
    rank: int
    learning_rate: float
    source: str
    targets: str = "all-linear"
    basis: str | None = None
    sparsity: float | str | None = None
    alpha_per_rank: float | None = None
    d_initial: float | None = None

    def has(self, option: str) -> bool:
        """Whether a job may set this one of `OPTIONS`."""
        return getattr(self, "alpha_per_rank" if option == "alpha" else option) is not None


@dataclass(frozen=True)
class MethodSpec:
    """One method by its variants, the default first. Options in `nonzero` may not be 0."""

    name: str
    variants: tuple[Variant, ...]
    nonzero: tuple[str, ...] = ()

    @property
    def trained(self) -> tuple[str, ...]:
        """The choices of the option `trained`; empty: the method trains all that it has."""
        return tuple(it.trained for it in self.variants if it.trained is not None)

    def has(self, option: str) -> bool:
        """Whether any variant has this one of `OPTIONS`."""
        return any(variant.has(option) for variant in self.variants)

    def variant(self, trained: str | None = None) -> Variant:
        """The variant that trains this; None: the default."""
        return next(it for it in self.variants if trained in (None, it.trained))


MethodSpecs = Mapping[str, MethodSpec]
"""The methods of a build by name, the default first."""


def spec_named(specs: MethodSpecs, name: str) -> MethodSpec:
    """Raises InvalidRequest naming the methods that there are."""
    if name not in specs:
        raise InvalidRequest(
            f"method={shown(name)} is not one of {', '.join(specs)}", param="method"
        )
    return specs[name]
