"""Who waits, and how an answer comes into the batch: its turn, its adapter, its memory.

Knows no engine, no steps and no listeners. Used by the loop's thread alone.
"""

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from adapters_store.manifest import AdapterRef
from server.metrics import Metrics
from server.scheduler.answer import Answer
from server.scheduler.policy import Blocks, admission_order

_SLOT_PATIENCE_S = 1.0  # crowded out for longer, an answer stops later ones from taking slots

Refuse = Callable[[Answer, Exception], None]
"""Ends an answer whose adapter cannot be had."""


class Slots(Protocol):
    """Adapters in device memory: `server.adapters.residency.ResidentAdapters`."""

    def prepare(self, ref: AdapterRef) -> None: ...

    def acquire(self, ref: AdapterRef) -> int | None: ...

    def content(self, ref: AdapterRef) -> str: ...

    def is_loaded(self, ref: AdapterRef) -> bool: ...

    def release(self, ref: AdapterRef) -> None: ...


class Admission:
    """The answers that wait, in no order; `admission_order` says whose turn it is.

    An answer that is admitted holds its adapter's slot until `leave`, through pre-emption as well.
    """

    def __init__(
        self,
        slots: Slots,
        blocks: Blocks,
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

    def take(self, answer: Answer) -> None:
        """Let a new answer wait; its adapter begins to load."""
        self.waiting.append(answer)
        if answer.adapter is not None:
            self._slots.prepare(answer.adapter)

    def put_back(self, answer: Answer) -> None:
        """Let an answer wait that was running and had to give its memory back."""
        answer.preempted = True
        self.waiting.append(answer)

    def leave(self, answer: Answer) -> None:
        """Take back what an answer that has ended holds: its blocks and its adapter's slot."""
        self._blocks.free(answer.sequence)
        if answer.holds_slot and answer.adapter is not None:
            self._slots.release(answer.adapter)
            answer.holds_slot = False

    def admit(self, running: Collection[Answer], refuse: Refuse) -> list[Answer]:
        """The answers that run from now on, beside `running`; they wait no longer."""
        if not self.waiting:
            if not running:
                self._served.clear()
            return []
        started: list[Answer] = []
        if len(running) >= self._max_rows:
            return started
        promised = self._promised(running)
        owners = [answer.request.owner for answer in running]
        last = self._last_to_take_slots()
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

    def _promised(self, running: Iterable[Answer]) -> int:
        """Blocks that those who run lack for the tokens they have: asked of all, most steps."""
        size, blocks = self._blocks.block_tokens, 0
        for answer in running:
            sequence = answer.sequence
            lacking = sequence.num_tokens - len(sequence.blocks) * size
            if lacking > 0:
                blocks -= -lacking // size
        return blocks

    def _last_to_take_slots(self) -> float:
        """The last arrival that may take a slot: later ones wait for the crowded out.

        Else adapters that are asked for without a pause would keep all slots for ever.
        """
        since = self._clock() - _SLOT_PATIENCE_S
        return min(
            (
                answer.arrival
                for answer in self.waiting
                if answer.crowded_out_at is not None and answer.crowded_out_at < since
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
            if answer.crowded_out_at is None and self._slots.is_loaded(answer.adapter):
                answer.crowded_out_at = self._clock()
            return False
        answer.sequence.slot = slot
        answer.sequence.content = self._slots.content(answer.adapter)
        answer.holds_slot = True
        answer.crowded_out_at = None
        return True

    def _start(self, answer: Answer) -> None:
        self.waiting.remove(answer)
        answer.preempted = False
        answer.times.start(self._clock(), self._metrics)
        self._served[answer.owner] = next(self._admissions)
