"""That copies and steps which touch the same memory are in order, and that others are not."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.adapters.memory.banks import SideCopies

Known = frozenset[int]


@dataclass(frozen=True)
class Op:
    """Something on the device; `before` are the numbers of what has ended when it begins."""

    kind: str
    pages: frozenset[int]
    before: Known


@dataclass
class FakeStream:
    """Operations of one stream follow each other; others are known of by events alone."""

    ops: list[Op]
    known: Known = frozenset()

    def run(self, kind: str, pages: frozenset[int]) -> int:
        self.ops.append(Op(kind, pages, self.known))
        self.known |= {len(self.ops) - 1}
        return len(self.ops) - 1

    def record_event(self) -> "FakeEvent":
        event = FakeEvent()
        event.record(self)
        return event

    def wait_event(self, event: "FakeEvent") -> None:
        self.known |= event.known

    def wait_stream(self, other: "FakeStream") -> None:
        self.known |= other.known


@dataclass
class FakeEvent:
    known: Known = frozenset()

    def record(self, stream: FakeStream) -> None:
        self.known = stream.known


@dataclass
class Room:
    """Where a row is copied to."""

    stream: FakeStream
    pages: range

    def copy_(self, row: Tensor, *, non_blocking: bool) -> None:
        assert non_blocking
        self.stream.run("copy", frozenset(self.pages))


@dataclass
class Device:
    """Side copies over streams that only write down what they were told."""

    ops: list[Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.main, self.side = FakeStream(self.ops), FakeStream(self.ops)
        self.copies = SideCopies(torch.device("cpu"))

    def copy(self, pages: range) -> int:
        room = cast(Tensor, Room(self.side, pages))
        self.copies.copy(room, torch.empty(0), pages)
        return len(self.ops) - 1

    def step(self, *rows: range) -> int:
        self.copies.begin_step(rows)
        return self.main.run("step", frozenset(page for pages in rows for page in pages))


@contextmanager
def device() -> Iterator[Device]:
    made: list[Device] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", FakeEvent)
        patch.setattr(torch.cuda, "Stream", lambda _: FakeStream([]))
        patch.setattr(torch.cuda, "stream", nullcontext)
        patch.setattr(torch.cuda, "current_stream", lambda _: made[0].main if made else _NEVER)
        made.append(Device())
        made[0].copies._side = cast(torch.cuda.Stream, made[0].side)
        yield made[0]


_NEVER = FakeStream([])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=3),
        ),
        max_size=14,
    )
)
def test_whatever_touches_the_same_page_is_in_order(
    actions: list[tuple[bool, list[tuple[int, int]]]],
) -> None:
    """Rows are written over each other at random, and steps read those that are whole."""
    whole: list[range] = []
    with device() as it:
        for writes, places in actions:
            rows = [range(start, start + length) for start, length in places]
            if writes:
                for row in rows:
                    it.copy(row)
                    whole = [old for old in whole if not set(old) & set(row)] + [row]
            else:
                it.step(*[row for row in whole if row.start % len(places) == 0])
    for later, op in enumerate(it.ops):
        for earlier, other in enumerate(it.ops[:later]):
            if op.pages & other.pages and "copy" in (op.kind, other.kind):
                assert earlier in op.before, (it.ops, earlier, later)


def test_a_step_waits_for_the_rows_that_it_reads_alone() -> None:
    with device() as it:
        coming = it.copy(range(4, 6))
        other, reader, again = it.step(range(1, 3)), it.step(range(4, 6)), it.step(range(4, 6))
    assert coming not in it.ops[other].before
    assert coming in it.ops[reader].before
    assert coming in it.ops[again].before


def test_a_copy_waits_for_no_step_in_the_air_but_one_that_reads_there() -> None:
    with device() as it:
        it.copy(range(4, 6))
        first, second = it.step(range(4, 6)), it.step(range(1, 3))
        beside, over = it.copy(range(5, 8)), it.copy(range(2, 4))
    assert first in it.ops[beside].before
    assert second not in it.ops[beside].before
    assert second in it.ops[over].before
