"""The random matrices on the device: those that residents read, and those that always stay.

Only the engine's thread comes here. Making them is `server.adapters.memory.matrices`'s.
"""

from collections.abc import Collection, Mapping

import torch

from server.adapters.memory.adapter_facts import AdapterFacts
from server.adapters.memory.matrices import BasisNeed, BasisSource, HeldBases, on_device
from server.adapters.methods.basis_id import BasisId


class DeviceBases:
    """`held`: by what names them; another object whenever that changes."""

    def __init__(self, source: BasisSource, device: torch.device) -> None:
        self.held: Mapping[BasisId, HeldBases] = {}
        self._source = source
        self._device = device
        self._always: set[BasisId] = set()

    def hold(self, basis: BasisId, need: BasisNeed) -> HeldBases:
        """Make this much of a basis and keep it from now on, whoever is resident."""
        made = HeldBases(on_device(self._source.bases(basis, need), self._device), need)
        self.held = {**self.held, basis: made}
        self._always.add(basis)
        return made

    def admit(self, facts: AdapterFacts, bases: HeldBases, wanted: Collection[BasisId]) -> None:
        """Copy what an adapter reads here, unless it is; drop what is not wanted any longer."""
        held = {b: it for b, it in self.held.items() if b in wanted or b in self._always}
        basis = facts.basis
        mine = held.get(basis)
        if mine is None or not mine.need.covers(facts.need, per_layer=basis.per_layer):
            held[basis] = HeldBases(on_device(bases.bases, self._device), bases.need)
        self.held = held
