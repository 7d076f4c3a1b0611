"""Admits waiting answers to the batch: by their turn, their adapter's slot and free blocks.

Knows no engine, no steps and no listeners. Used by the loop's thread alone.
"""

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from adapters_store.manifest import AdapterRef
from server.engine.blocks import BlockPool
from server.metrics import Metrics
from server.scheduler.answer import Answer
from server.scheduler.policy import admission_order

_SLOT_PATIENCE_S = 1.0  # an answer without a slot for longer keeps later ones from taking slots

Refuse = Callable[[Answer, Exception], None]
"""Ends an answer whose adapter cannot be served."""


class Slots(Protocol):
    """Adapters in device memory: `server.adapters.residency.ResidentAdapters`."""

    def prepare(self, ref: AdapterRef) -> None: ...

    def acquire(self, ref: AdapterRef) -> int | None: ...

    def content(self, ref: AdapterRef) -> str: ...

    def is_loaded(self, ref: AdapterRef) -> bool: ...

    def release(self, ref: AdapterRef) -> None: ...


class Admission:
    """The answers that wait, in no order; `admission_order` says whose turn it is.

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
        self.waiting: list[Answer] = []
        self._slots = slots
        self._blocks = blocks
        self._max_rows = max_rows
        self._metrics = metrics
        self._clock = clock
        self._served: dict[str, int] = {}
        self._admissions = itertools.count(1)

    def add(self, answer: Answer) -> None:
        """Queue a new answer; its adapter begins to load."""
        self.waiting.append(answer)
        if answer.adapter is not None:
            self._slots.prepare(answer.adapter)

    def put_back(self, answer: Answer) -> None:
        """Queue a running answer again that was pre-empted."""
        answer.preempted = True
        self.waiting.append(answer)

    def release(self, answer: Answer) -> None:
        """Free what an ended answer holds: its blocks and its adapter's slot."""
        self._blocks.free(answer.sequence)
        if answer.holds_slot and answer.adapter is not None:
            self._slots.release(answer.adapter)
            answer.holds_slot = False

    def admit(self, running: Collection[Answer], refuse: Refuse) -> list[Answer]:
        """Move answers from `waiting` to the batch, where `running` are; returns them."""
        if not self.waiting:
            if not running:
                self._served.clear()
            return []
        started: list[Answer] = []
        if len(running) >= self._max_rows:
            return started
        promised = self._blocks_lacking(running)
        owners = [answer.request.owner for answer in running]
        last = self._last_arrival_for_slots()
        for answer in admission_order(self.waiting, owners, self._served):
            if len(running) + len(started) >= self._max_rows:
                break
            if not self._take_slot(answer, last, refuse):
                continue
            self._blocks.reuse(answer.sequence)
            # One token beyond the prompt, or the first decode would pre-empt somebody at once.
            need = self._blocks.need(answer.sequence, answer.sequence.num_tokens + 1)
            if (running or started) and promised + need > self._blocks.num_free:
                self._blocks.free(answer.sequence)
                break
            promised += need
            self._start(answer)
            started.append(answer)
        return started

    def _blocks_lacking(self, running: Iterable[Answer]) -> int:
        """Blocks that running answers still lack for the tokens they have."""
        size, blocks = self._blocks.block_tokens, 0  # no calls: this runs for every answer
        for answer in running:
            sequence = answer.sequence
            lacking = sequence.num_tokens - len(sequence.blocks) * size
            if lacking > 0:
                blocks -= -lacking // size
        return blocks

    def _last_arrival_for_slots(self) -> float:
        """The last arrival that may take a slot while earlier ones have waited too long for theirs.

        Else adapters that are in constant use would keep all slots for ever.
        """
        since = self._clock() - _SLOT_PATIENCE_S
        return min(
            (
                answer.arrival
                for answer in self.waiting
                if answer.no_slot_since is not None and answer.no_slot_since < since
            ),
            default=math.inf,
        )

    def _take_slot(self, answer: Answer, last: float, refuse: Refuse) -> bool:
        """True when the answer's adapter is in a slot, held for it until the answer ends."""
        if answer.adapter is None or answer.holds_slot:
            return True
        if answer.arrival > last:
            return False
        try:
            slot = self._slots.acquire(answer.adapter)
        except Exception as error:  # a device out of memory, say: the loop must outlive it
            refuse(answer, error)
            return False
        if slot is None:
            if answer.no_slot_since is None and self._slots.is_loaded(answer.adapter):
                answer.no_slot_since = self._clock()
            return False
        answer.sequence.slot = slot
        answer.sequence.content = self._slots.content(answer.adapter)
        answer.holds_slot = True
        answer.no_slot_since = None
        return True

    def _start(self, answer: Answer) -> None:
        self.waiting.remove(answer)
        answer.preempted = False
        answer.times.start(self._clock(), self._metrics)
        self._served[answer.owner] = next(self._admissions)
