"""The random matrices on the device: those that resident adapters read, and those that always stay.

Only the engine's thread uses this. `server.adapters.memory.matrices` makes the matrices.
"""

from collections.abc import Callable, Collection, Mapping, Set

import torch

from server.adapters.memory.adapter_facts import AdapterFacts
from server.adapters.memory.matrices import BasisNeed, BasisSource, LoadedBasis, on_device
from server.adapters.methods.basis_id import BasisId


class DeviceBases:
    """`loaded` holds the matrices by basis. It is another object whenever that changes.

    Args:
        on_dropped: called with the matrices that leave, before memory is taken for others. Whoever
            keeps some must let go of them then: they no longer count against the budget.
    """

    def __init__(
        self,
        source: BasisSource,
        device: torch.device,
        on_dropped: Callable[[Set[LoadedBasis]], None],
    ) -> None:
        self.loaded: Mapping[BasisId, LoadedBasis] = {}
        self._source = source
        self._device = device
        self._on_dropped = on_dropped
        self._always: set[BasisId] = set()

    def keep_always(self, basis: BasisId, need: BasisNeed) -> LoadedBasis:
        """Make this much of a basis and keep it from now on, whoever is resident."""
        kept = LoadedBasis(on_device(self._source.pairs(basis, need), self._device), need)
        self._replace({**self.loaded, basis: kept})
        self._always.add(basis)
        return kept

    def admit(self, facts: AdapterFacts, in_host: LoadedBasis, wanted: Collection[BasisId]) -> None:
        """Drop the bases that are not wanted any longer, and copy here what an adapter lacks."""
        kept = {b: it for b, it in self.loaded.items() if b in wanted or b in self._always}
        self._replace(kept)
        basis = facts.basis
        mine = kept.get(basis)
        if mine is None or not mine.need.covers(facts.need, per_layer=basis.per_layer):
            on_here = LoadedBasis(on_device(in_host.pairs, self._device), in_host.need)
            self._replace({**kept, basis: on_here})

    def _replace(self, loaded: Mapping[BasisId, LoadedBasis]) -> None:
        dropped = set(self.loaded.values()) - set(loaded.values())
        self.loaded = loaded
        if dropped:
            self._on_dropped(dropped)
