"""Caches results for groups of adapters, such as captured graphs, within the budget of bases.

Knows neither graphs nor kernels. A graph reads the matrices of its groups at fixed addresses, so an
entry keeps them alive. When the budget drops a basis, all entries that read it must leave.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence, Set
from typing import Generic, TypeVar

from server.adapters.batch.fused_plan import FusedGroup
from server.adapters.memory.matrices import LoadedBasis

T = TypeVar("T")


class GroupCache(Generic[T]):
    """At most `most` entries, by their groups and a name; the longest unused one leaves first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[tuple[tuple[FusedGroup, ...], Hashable], T] = OrderedDict()

    def get(self, groups: Sequence[FusedGroup], name: Hashable) -> T | None:
        key = (tuple(groups), name)
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, groups: Sequence[FusedGroup], name: Hashable, entry: T) -> None:
        self._entries[tuple(groups), name] = entry
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def drop(self, bases: Set[LoadedBasis]) -> None:
        """Forget all entries of groups that read one of these."""
        for key in [*self._entries]:
            if any(group.loaded in bases for group in key[0]):
                del self._entries[key]
