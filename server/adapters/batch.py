"""Turn the slots of a step's tokens into the deltas of every linear: the mixed batch.

Knows no store and no requests. Tokens are grouped by what shares matrix products (one method, one
basis seed); rows of other groups and of the base model read slot 0 there, which adds zero.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.adapters.banks import BASE_SLOT, Bank, BankRows
from server.adapters.facts import AdapterFacts
from server.adapters.method import BasisPair, Delta
from server.adapters.methods import METHODS
from server.bases.model import TargetLinear


@dataclass(frozen=True, eq=False)
class MixedBatch:
    """One step's deltas by module path. Layers that none of its adapters target are absent."""

    slots: tuple[int, ...]
    deltas: Mapping[str, Sequence[Delta]]


@dataclass
class _Group:
    """Adapters of one step that share matrix products."""

    method: str
    seed: int
    rank: int = 0
    slots: set[int] = field(default_factory=set)
    targets: set[str] = field(default_factory=set)


def mixed_batch(
    slots: Sequence[int],
    facts: Mapping[int, AdapterFacts],
    targets: Mapping[str, TargetLinear],
    bank: Bank,
    bases: Mapping[int, BasisPair],
    *,
    device: torch.device,
    keep: bool,
) -> MixedBatch:
    """Build the deltas for `slots`, one per token.

    Args:
        facts: of every slot that occurs, but 0.
        bases: by seed.
        keep: hold what is gathered, for steps to come with the same slots.
    """
    deltas: dict[str, list[Delta]] = {}
    for group in _groups(slots, facts):
        token_slots = _token_slots(slots, group.slots, device)
        layers = {
            path: (
                linear,
                BankRows(bank.layer(group.method, path, group.rank), token_slots, keep=keep),
            )
            for path, linear in targets.items()
            if path in group.targets
        }
        made = METHODS[group.method].deltas(layers, group.rank, bases[group.seed])
        for path, delta in made.items():
            deltas.setdefault(path, []).append(delta)
    return MixedBatch(tuple(slots), deltas)


def _groups(slots: Sequence[int], facts: Mapping[int, AdapterFacts]) -> list[_Group]:
    groups: dict[Hashable, _Group] = {}
    for slot in sorted(set(slots) - {BASE_SLOT}):
        fact = facts.get(slot)
        if fact is None:
            raise ValueError(f"slot {slot} holds no adapter: acquire one first")
        group = groups.setdefault((fact.method, fact.group), _Group(fact.method, fact.seed))
        group.rank = max(group.rank, fact.rank)
        group.slots.add(slot)
        group.targets |= fact.targets
    return list(groups.values())


def _token_slots(slots: Sequence[int], members: set[int], device: torch.device) -> Tensor:
    mine = [slot if slot in members else BASE_SLOT for slot in slots]
    return torch.tensor(mine, dtype=torch.int64, device=device)
