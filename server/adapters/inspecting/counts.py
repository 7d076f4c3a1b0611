"""Counts what an adapter takes: numbers trained, bytes at rest, memory of the matrices it reads.

Arithmetic over shapes; no weights are read, and the base may be on torch's meta device.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from server.adapters.memory.matrices import BasisSource, need_of
from server.adapters.methods.method import Method
from server.bases.model import BaseModel, TargetLinear

BYTES_AT_REST: Final = 4  # of a trained number: files hold float32


@dataclass(frozen=True)
class Counts:
    """Of one adapter.

    `basis_bytes` is device memory for the random matrices that it reads, in the base's dtype; all
    adapters that read the same ones share it, and nothing of it is stored.
    """

    parameters: int
    basis_bytes: int

    @property
    def bytes_at_rest(self) -> int:
        """Of the vectors; a file adds a header of some hundred bytes per linear."""
        return BYTES_AT_REST * self.parameters


def trained_parameters(method: Method, linears: Iterable[TargetLinear], rank: int) -> int:
    """How many numbers an adapter of these linears trains, as the method's stored shapes say."""
    return sum(
        math.prod(shape) for linear in linears for shape in method.shapes(linear, rank).values()
    )


def count(method: Method, base: BaseModel, targets: Iterable[str], rank: int) -> Counts:
    """Count an adapter of the linears at `targets`, paths of `base`."""
    targets = tuple(targets)
    linears = (base.targets[path] for path in targets)
    need = need_of(method, base, targets, rank)
    return Counts(
        parameters=trained_parameters(method, linears, rank),
        basis_bytes=BasisSource(base).bytes_of(method.basis(seed=0), need),
    )
