"""Decides what a step runs. Pure functions; knows no threads and no tensors."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from server.engine.blocks import BlockPool
from server.engine.sequence import Chunk, Sequence
from server.scheduler.turns import Account, prompts_in_turn

Accounts = Callable[[], Mapping[Sequence, Account[Any]]]
"""Finds the account of each running sequence: not for nothing, so called only where it matters."""


@dataclass(frozen=True)
class StepPlan:
    """One step: the chunks that run, and the sequences that were pre-empted to free memory."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...]


def plan_step(
    running: Seq[Sequence],
    blocks: BlockPool,
    max_step_tokens: int,
    accounts: Accounts | None = None,
) -> StepPlan:
    """Choose the chunks of one step. `running` is in order of admission, oldest first.

    Every decoding sequence runs one token; what is left of `max_step_tokens` goes to prompts,
    oldest first, in chunks. When blocks run out, the youngest sequence is pre-empted: it loses its
    blocks and is computed again later. The oldest can always run, so the loop always advances.

    With `accounts`, the prompts of several owners take turns, and the youngest of the owner that
    was served most is pre-empted. Then the oldest of the owner served least can always run.

    A prompt reuses the blocks that earlier steps computed for an equal beginning. Of prompts that
    begin alike in one step only the oldest runs: the others reuse its blocks in the next step.
    """
    size = blocks.block_tokens
    decodes: list[tuple[Sequence, int]] = []
    prompts: list[tuple[Sequence, int]] = []
    for sequence in running:
        if sequence.num_computed - sequence.num_shared >= size:
            blocks.share(sequence)
        remaining = sequence.remaining
        (decodes if remaining == 1 else prompts).append((sequence, remaining))
    if accounts is not None and len(prompts) > 1:
        prompts = prompts_in_turn(prompts, accounts())
    alive = list(running)
    chunks: list[tuple[Sequence, int]] = []
    preempted: list[Sequence] = []
    begun: set[bytes] = set()
    budget = max_step_tokens
    for sequence, length in (*decodes, *prompts):
        if budget == 0:
            break
        if preempted and sequence in preempted:
            continue
        if length > 1:
            blocks.reuse(sequence)
            key = blocks.next_key(sequence)
            if key in begun:
                continue
            if key is not None:
                begun.add(key)
            length = min(sequence.remaining, budget)
        stop = sequence.num_computed + length
        while stop > len(sequence.blocks) * size and not blocks.grow(sequence, stop):
            victim = alive.pop(_place_of_victim(alive, accounts))
            blocks.free(victim)
            preempted.append(victim)
            chunks = [chunk for chunk in chunks if chunk[0] is not victim]
            if victim is sequence:
                break
        else:
            chunks.append((sequence, length))
            budget -= length
    return StepPlan(tuple(map(Chunk._make, chunks)), tuple(preempted))


def _place_of_victim(alive: Seq[Sequence], accounts: Accounts | None) -> int:
    if accounts is None:
        return -1
    of = accounts()
    return max(range(len(alive)), key=lambda place: (of[alive[place]].served, place))
