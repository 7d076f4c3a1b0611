"""What the server remembers of an adapter in memory beside its vectors."""

from collections.abc import Hashable
from dataclasses import dataclass

from adapters_store.manifest import AdapterRef
from server.adapters.method import BasisSize


@dataclass(frozen=True)
class AdapterFacts:
    """`group`: see `Method.group`. `bytes` are those of its row; `sha256` is its content hash."""

    ref: AdapterRef
    method: str
    seed: int
    rank: int
    group: Hashable
    basis: BasisSize
    targets: frozenset[str]
    bytes: int
    sha256: str
