"""Admits waiting answers to the batch: by their turn, their adapter's slot and free blocks.

Knows no engine, no steps and no listeners. Used by the loop's thread alone.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from contextlib import closing
from functools import cache
from typing import Protocol

from adapters_store.manifest import AdapterRef
from server.engine.blocks import BlockPool
from server.engine.sequence import Sequence
from server.metrics import Metrics
from server.scheduler.answer import Answer
from server.scheduler.policy import Accounts
from server.scheduler.turns import Turns

_SLOT_PATIENCE_S = 1.0  # an answer without a slot for longer keeps later ones from taking slots

Refuse = Callable[[Answer, Exception], None]
"""Ends an answer whose adapter cannot be served."""

Preempt = Callable[[Answer], None]
"""Takes a running answer's memory and puts it back to those that wait."""


class Slots(Protocol):
    """Adapters in device memory: `server.adapters.residency.ResidentAdapters`."""

    def prepare(self, ref: AdapterRef) -> None: ...

    def acquire(self, ref: AdapterRef) -> int | None: ...

    def content(self, ref: AdapterRef) -> str: ...

    def is_loaded(self, ref: AdapterRef) -> bool: ...

    def release(self, ref: AdapterRef) -> None: ...


class Admission:
    """The answers that wait; `Turns` says whose turn it is.

    An admitted answer holds its adapter's slot until `release`, through pre-emption as well.
    """

    def __init__(
        self,
        slots: Slots,
        blocks: BlockPool,
        *,
        max_rows: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._turns: Turns[Answer] = Turns()
        self._without_slot: dict[Answer, None] = {}  # each has a `no_slot_since`
        self._slots = slots
        self._blocks = blocks
        self._max_rows = max_rows
        self._metrics = metrics
        self._clock = clock

    @property
    def num_waiting(self) -> int:
        return self._turns.num_waiting

    def add(self, answer: Answer) -> None:
        """Queue a new answer; its adapter begins to load."""
        self._turns.add(answer)
        if answer.adapter is not None:
            self._slots.prepare(answer.adapter)

    def put_back(self, answer: Answer) -> None:
        """Queue a running answer again that was pre-empted; it keeps its slot."""
        self._blocks.free(answer.sequence)
        self._turns.put_back(answer)

    def release(self, answer: Answer) -> None:
        """Free what an ended answer holds: its turn, its blocks and its adapter's slot."""
        self._turns.leave(answer)
        self._without_slot.pop(answer, None)
        self._blocks.free(answer.sequence)
        if answer.holds_slot and answer.adapter is not None:
            self._slots.release(answer.adapter)
            answer.holds_slot = False

    def admit(
        self, running: Mapping[Sequence, Answer], refuse: Refuse, preempt: Preempt
    ) -> list[Answer]:
        """Move answers from those that wait to the batch, where `running` are; returns them."""
        turns = self._turns
        if not turns.num_waiting:
            if not running:
                turns.clear()
            return []
        full = len(running) >= self._max_rows
        if turns.any_begins or turns.several or not full:
            turns.settle(running.values())
        if full and not turns.several:
            return []
        started, left = self._admit_in_turn([*running.values()], refuse)
        if left is None or not turns.several:
            return started
        yielding = self._who_makes_room(left, [*running.values()], started)
        for answer in yielding:
            preempt(answer)
        beside = [*running.values(), *started]
        if yielding and self._start(left, len(beside), self._blocks_lacking(beside)) is not None:
            beside.append(left)
            turns.settle(beside)
            more, _ = self._admit_in_turn(beside, refuse)  # they may have held more than was needed
            started += (left, *more)
        return started

    def _admit_in_turn(
        self, beside: Seq[Answer], refuse: Refuse
    ) -> tuple[list[Answer], Answer | None]:
        """Admit those for whom there is room; returns them, and whose turn it then is."""
        started: list[Answer] = []
        last = self._last_turn_for_slots()
        lacking = self._blocks_lacking(beside)
        with closing(self._turns.in_turn()) as in_turn:
            for answer in in_turn:
                if not self._take_slot(answer, last, refuse):
                    continue
                need = self._start(answer, len(beside) + len(started), lacking)
                if need is None:
                    return started, answer
                lacking += need
                started.append(answer)
        return started, None

    def _start(self, answer: Answer, rows: int, lacking: int) -> int | None:
        """Admit an answer beside rows that lack so many blocks. Returns how many it lacks; None if
        there is no room."""
        if rows >= self._max_rows:
            return None
        self._blocks.reuse(answer.sequence)
        need = self._need(answer)
        if rows and lacking + need > self._blocks.num_free:
            self._blocks.free(answer.sequence)
            return None
        self._turns.take(answer)
        answer.times.start(self._clock(), self._metrics)
        return need

    def _who_makes_room(
        self, answer: Answer, running: Seq[Answer], started: Seq[Answer]
    ) -> list[Answer]:
        """Whom to pre-empt so that `answer`, whose turn it is, can start: the youngest of the owner
        that was served most. Nobody, unless that owner then still holds twice the memory for its
        weight: with less, two busy owners would only take it from each other.

        Their memory keeps its keys until it is needed, so mostly little is computed again.
        """
        served, held = self._turns.served, Counter[str]()
        for other in running:
            held[other.owner] += len(other.sequence.blocks)
        others = [other for other in running if other.owner != answer.owner]
        most = max(others, key=served, default=answer)
        if served(most) < served(answer):
            return []
        beside = [*running, *started]
        blocks = self._need(answer) + self._blocks_lacking(beside) - self._blocks.num_free
        rows = len(beside) + 1 - self._max_rows
        own = (held[answer.owner] + self._need(answer)) / answer.weight
        yielding: list[Answer] = []
        for other in reversed(others):
            if blocks <= 0 and len(yielding) >= rows:
                break
            if other.owner == most.owner:
                gained = len(other.sequence.blocks)
                held[most.owner] -= gained
                blocks -= gained
                yielding.append(other)
        enough = blocks <= 0 and len(yielding) >= rows
        return yielding if enough and 2 * own < held[most.owner] / most.weight else []

    def _need(self, answer: Answer) -> int:
        """Blocks that an answer lacks to start: for one token beyond the prompt too, or the first
        decode would pre-empt somebody at once."""
        return self._blocks.need(answer.sequence, answer.sequence.num_tokens + 1)

    def accounts(self, running: Mapping[Sequence, Answer]) -> Accounts | None:
        """What finds the account of each running sequence; None while there is one owner."""
        return cache(lambda: self._turns.accounts(running)) if self._turns.several else None

    def _blocks_lacking(self, running: Iterable[Answer]) -> int:
        """Blocks that running answers still lack for the tokens they have."""
        size, blocks = self._blocks.block_tokens, 0  # no calls: this runs for every answer
        for answer in running:
            sequence = answer.sequence
            lacking = sequence.num_tokens - len(sequence.blocks) * size
            if lacking > 0:
                blocks -= -lacking // size
        return blocks

    def _last_turn_for_slots(self) -> tuple[float, int]:
        """The last turn that may take a slot while earlier ones have waited too long for theirs.

        Else adapters that are in constant use would keep all slots for ever.
        """
        since = self._clock() - _SLOT_PATIENCE_S
        return min(
            (
                self._turn(answer)
                for answer in self._without_slot
                if answer.no_slot_since is not None and answer.no_slot_since < since
            ),
            default=(math.inf, 0),
        )

    def _turn(self, answer: Answer) -> tuple[float, int]:
        return self._turns.served(answer), answer.arrival

    def _take_slot(self, answer: Answer, last: tuple[float, int], refuse: Refuse) -> bool:
        """True when the answer's adapter is in a slot, held for it until the answer ends."""
        if answer.adapter is None or answer.holds_slot:
            return True
        if self._turn(answer) > last:
            return False
        try:
            slot = self._slots.acquire(answer.adapter)
        except Exception as error:  # a device out of memory, say: the loop must outlive it
            refuse(answer, error)
            return False
        if slot is None:
            if answer.no_slot_since is None and self._slots.is_loaded(answer.adapter):
                answer.no_slot_since = self._clock()
                self._without_slot[answer] = None
            return False
        answer.sequence.slot = slot
        answer.sequence.content = self._slots.content(answer.adapter)
        answer.holds_slot = True
        answer.no_slot_since = None
        self._without_slot.pop(answer, None)
        return True
