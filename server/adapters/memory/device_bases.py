"""The random matrices on the device: those that resident adapters read, and those that always stay.

Only the engine's thread changes them. `server.adapters.memory.matrices` makes the matrices.
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

    @property
    def bytes(self) -> int:
        """What the matrices take; any thread may ask."""
        pairs = [pair for basis in self.loaded.values() for pair in basis.pairs.values()]
        memory = [half.untyped_storage() for pair in pairs for half in (pair.a, pair.bt)]
        return sum({each.data_ptr(): each.nbytes() for each in memory}.values())

    def keep_always(self, basis: BasisId, need: BasisNeed) -> LoadedBasis:
        """Make this much of a basis and keep it from now on, whoever is resident.

        It is not counted against the budget. Call it on the engine's thread, or before that starts.
        """
        loaded = LoadedBasis(on_device(self._source.pairs(basis, need), self._device), need)
        self._replace({**self.loaded, basis: loaded})
        self._always.add(basis)
        return loaded

    def admit(self, facts: AdapterFacts, in_host: LoadedBasis, in_use: Collection[BasisId]) -> None:
        """Drop the bases that are no longer in use, and copy here what an adapter lacks."""
        remaining = {b: it for b, it in self.loaded.items() if b in in_use or b in self._always}
        self._replace(remaining)
        basis = facts.basis
        loaded = remaining.get(basis)
        if loaded is None or not loaded.need.covers(facts.need, per_layer=basis.per_layer):
            copied = LoadedBasis(on_device(in_host.pairs, self._device), in_host.need)
            self._replace({**remaining, basis: copied})

    def _replace(self, loaded: Mapping[BasisId, LoadedBasis]) -> None:
        dropped = set(self.loaded.values()) - set(loaded.values())
        self.loaded = loaded
        if dropped:
            self._on_dropped(dropped)
