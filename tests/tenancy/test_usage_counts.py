"""Usage is added up once, whatever happens to answers, and old hours become days."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from server.db.audit_trail import Actor
from server.db.session import Database
from server.db.tenancy_tables import UsageRow, UsageWriterRow
from server.db.usage_rows import HOUR_S, UsageKey, add_usage
from server.errors import InvalidRequest, Unavailable
from server.tenancy.usage import usage_book
from server.tenancy.usage.trained_tokens import TrainedTokens
from server.tenancy.usage.usage_book import (
    DAY_S,
    Place,
    Question,
    UsageBook,
    UsageWriter,
    writing_usage,
)
from server.tenancy.usage.usage_counts import MOST_MODELS, Hourly, UsageCounts

NOW = 20_000 * DAY_S + 5 * HOUR_S
ANN = Actor("user-1", "key_1", "user-1", "ann")


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(url: str, database: Database, clock: Clock) -> Iterator[Database]:
    """The database by a clock that tests set."""
    timed = Database(url, clock=clock)
    yield timed
    timed.close()


@pytest.fixture
def book(timed: Database) -> UsageBook:
    return UsageBook(timed)


class LosingBook(UsageBook):
    """Loses the answer of a commit once, or fails before it."""

    lost: str | None = None

    def add(self, writer: str, batch: int, counted: Hourly) -> None:
        lost, self.lost = self.lost, None
        if lost == "before":
            raise Unavailable("the database is away")
        super().add(writer, batch, counted)
        if lost == "after":
            raise Unavailable("the connection was lost")


def rows(database: Database) -> dict[tuple[int, str, str], tuple[int, int, int]]:
    with database.reading() as session:
        found = session.scalars(select(UsageRow)).all()
    return {(it.start, it.owner, it.model): (it.requests, it.prompt, it.completion) for it in found}


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_batch_counts_once_whatever_happens_to_its_answer(
    timed: Database, clock: Clock, lost: str
) -> None:
    losing, counts = LosingBook(timed), UsageCounts(clock=clock)
    writer = UsageWriter(losing, counts)
    counts.end(counts.begin(ANN, "base", 7))
    losing.lost = lost
    with pytest.raises(Unavailable):
        writer.write()
    counts.end(counts.begin(ANN, "base", 1))
    writer.write()
    writer.write()
    writer.write()
    assert rows(timed) == {(NOW, "ann", "base"): (2, 8, 0)}


def test_processes_add_up_and_hours_are_apart(timed: Database, clock: Clock) -> None:
    every = [UsageCounts(clock=clock) for _ in range(2)]
    writers = [UsageWriter(UsageBook(timed), counts) for counts in every]
    for counts in every:
        meter = counts.begin(ANN, "pirate", 5)
        meter.completion = 3
    for writer in writers:
        writer.write()
    assert rows(timed) == {(NOW, "ann", "pirate"): (2, 10, 6)}
    clock.now += HOUR_S
    meter.completion = 10
    for writer in writers:
        writer.write()
    later = rows(timed)[(NOW + HOUR_S, "ann", "pirate")]
    assert later == (0, 0, 7), "the tokens of an hour, of an answer that began before it"


def test_the_models_of_an_owner_and_hour_are_bounded(clock: Clock) -> None:
    counts = UsageCounts(clock=clock)
    for number in range(MOST_MODELS + 5):
        counts.end(counts.begin(ANN, f"adapter-{number}", 1))
    counts.end(counts.begin(Actor("key_2", "key_2", None, "bob"), "his", 1))
    taken = counts.take()
    assert len(taken) == MOST_MODELS + 2
    other = taken[(NOW, UsageKey("ann", "key_1", "user-1", "other"))]
    assert other["requests"] == 5


def test_the_thread_writes_and_the_end_writes_the_rest(timed: Database, clock: Clock) -> None:
    counts = UsageCounts(clock=clock)
    with writing_usage(UsageBook(timed), counts, every_s=60):
        counts.refused(ANN)
        assert rows(timed) == {}
    with timed.reading() as session:
        assert session.scalars(select(UsageRow.refusals)).all() == [1]


def test_old_hours_become_days_and_sums_stay(
    book: UsageBook, timed: Database, clock: Clock
) -> None:
    day = NOW // DAY_S * DAY_S - 70 * DAY_S
    for batch, hour in enumerate((day, day + HOUR_S, day + 23 * HOUR_S, day + DAY_S + HOUR_S, NOW)):
        book.add("w", batch + 1, {(hour, UsageKey("ann", model="base")): {"prompt": 10}})
    question = Question(start=day, end=day + 2 * DAY_S, width=DAY_S)
    before = book.buckets(question, Place(day), 31)[1]
    assert [used.prompt for used in before] == [30, 10]
    assert book.fold() == 2
    assert book.fold() == 0
    assert sorted(start for start, _, _ in rows(timed)) == [day, day + DAY_S, NOW]
    assert book.buckets(question, Place(day), 31)[1] == before
    with pytest.raises(InvalidRequest, match="bucket_width=1d"):
        book.buckets(Question(start=day, end=NOW, width=HOUR_S), Place(day), 24)
    clock.now += 3 * DAY_S
    book.fold()
    with timed.reading() as session:
        assert session.scalars(select(UsageWriterRow)).all() == []


def test_trained_tokens_count_up_from_when_they_are_first_asked_for(
    book: UsageBook, clock: Clock, timed: Database
) -> None:
    def train(hour: int, owner: str, tokens: int) -> None:
        with timed.transaction() as session:
            add_usage(session, [(hour, UsageKey(owner), {"training": tokens})])

    train(NOW - 5 * HOUR_S, "ann", 10_000)
    train(NOW, "ann", 1000)
    trained = TrainedTokens(book, clock)
    assert trained.count() == 0, "what was trained before is not new"
    train(NOW, "ann", 5)
    train(NOW, "eve", 3)
    assert [trained.count(), trained.count()] == [8, 8]
    train(NOW + HOUR_S, "ann", 2)
    assert trained.count() == 10
    train(NOW, "ann", 4)  # by a worker whose clock is behind
    assert trained.count() == 14
    for hours in range(2, 6):
        train(NOW + hours * HOUR_S, "eve", 1)
        assert trained.count() == 13 + hours
    clock.now += 30 * DAY_S
    assert trained.count() == 18
    train(NOW + 30 * DAY_S, "eve", 2)
    assert trained.count() == 20


def test_a_bucket_of_many_groups_comes_in_pages(
    book: UsageBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_book, "MOST_RESULTS", 3)
    day = NOW // DAY_S * DAY_S
    hours = {day: 2, day + DAY_S: 7, day + 2 * DAY_S: 1}
    for batch, (hour, owners) in enumerate(hours.items()):
        counted = {(hour, UsageKey(f"owner-{n}")): {"requests": 1} for n in range(owners)}
        book.add("w", batch + 1, counted)
    question = Question(start=day, end=day + 3 * DAY_S, width=DAY_S, group_by=["owner"])
    place: Place | None = Place(day)
    seen = []
    while place is not None:
        starts, results, place = book.buckets(question, place, 31)
        assert {used.start for used in results} <= set(starts) and len(results) <= 3
        seen += [(used.start, used.owner) for used in results]
    expected = [(hour, f"owner-{n}") for hour, owners in hours.items() for n in range(owners)]
    assert seen == expected


def test_the_busiest_groups_of_a_time(book: UsageBook) -> None:
    used = {
        (NOW, UsageKey("ann", "k", "", "a")): {"requests": 1, "prompt": 10},
        (NOW - DAY_S, UsageKey("ann", "k", "", "a")): {"requests": 1, "completion": 5},
        (NOW, UsageKey("ann", "k", "", "b")): {"requests": 9, "prompt": 14},
        (NOW, UsageKey("bob", "k", "", "b")): {"requests": 1, "training": 99},
        (NOW, UsageKey("ann", "k")): {"refusals": 3},
        (NOW - 9 * DAY_S, UsageKey("ann", "k", "", "old")): {"prompt": 10**6},
    }
    book.add("w", 1, used)
    question = Question(NOW - DAY_S, NOW + 1, DAY_S, group_by=("owner", "model"))
    found = book.ranked(question, 10)
    assert [(it.owner, it.model) for it in found] == [
        *(("bob", "b"), ("ann", "a"), ("ann", "b"), ("ann", "")),
    ]
    assert (found[1].requests, found[1].prompt, found[1].completion) == (2, 10, 5)
    assert found[3].refusals == 3
    assert {it.start for it in found} == {(NOW - DAY_S) // DAY_S * DAY_S}
    assert book.ranked(question, 2) == found[:2]
    mine = Question(NOW - DAY_S, NOW + 1, DAY_S, group_by=("model",), owners=["ann"])
    assert [it.model for it in book.ranked(mine, 10)] == ["a", "b", ""]
