"""What the server knows of an adapter in memory, without its vectors."""

from dataclasses import dataclass

from adapters_store.manifest import AdapterRef
from server.adapters.memory.layouts import RowLayout
from server.adapters.memory.matrices import BasisNeed
from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.method import Method


@dataclass(frozen=True)
class AdapterFacts:
    """`bytes` are those of its row in `layout`; `sha256` is its content hash."""

    ref: AdapterRef
    method: Method
    rank: int
    targets: frozenset[str]
    layout: RowLayout
    basis: BasisId
    need: BasisNeed
    bytes: int
    sha256: str
