"""Decides whom to admit and what a step runs. Pure functions; knows no threads and no tensors."""

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol, TypeVar

from server.engine.blocks import BlockPool
from server.engine.sequence import Chunk, Sequence


class Waiting(Protocol):
    """What the order of admission depends on: `server.scheduler.answer.Answer`."""

    @property
    def owner(self) -> str: ...

    @property
    def arrival(self) -> int: ...

    @property
    def preempted(self) -> bool: ...


@dataclass(frozen=True)
class StepPlan:
    """One step: the chunks that run, and the sequences that were pre-empted to free memory."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...]


W = TypeVar("W", bound=Waiting)


def admission_order(
    waiting: Iterable[W], running_owners: Iterable[str], last_served: Mapping[str, int]
) -> list[W]:
    """Pre-empted first, then owners with the least running, then the one served longest ago.

    `last_served` counts admissions: the higher, the more recently that owner had one.

    An owner's k-th waiting request counts the k - 1 before it as if they ran, so that two owners
    alternate however many requests one of them has queued.
    """
    load = Counter(running_owners)
    ranked: list[tuple[bool, int, int, int, W]] = []
    for item in sorted(waiting, key=lambda item: item.arrival):
        served = last_served.get(item.owner, 0)
        ranked.append((not item.preempted, load[item.owner], served, item.arrival, item))
        load[item.owner] += 1
    ranked.sort(key=lambda entry: entry[:4])
    return [entry[4] for entry in ranked]


def plan_step(running: Seq[Sequence], blocks: BlockPool, max_step_tokens: int) -> StepPlan:
    """Choose the chunks of one step. `running` is in order of admission, oldest first.

    Every decoding sequence runs one token; what is left of `max_step_tokens` goes to prompts,
    oldest first, in chunks. When blocks run out, the youngest sequence is pre-empted: it loses its
    blocks and is computed again later. The oldest can always run, so the loop always advances.

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
            victim = alive.pop()
            blocks.free(victim)
            preempted.append(victim)
            chunks = [chunk for chunk in chunks if chunk[0] is not victim]
            if victim is sequence:
                break
        else:
            chunks.append((sequence, length))
            budget -= length
    return StepPlan(tuple(map(Chunk._make, chunks)), tuple(preempted))
