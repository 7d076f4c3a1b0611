"""Usage in the database: adds batches of counts, sums them up, folds old hours into days."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Select, case, delete, func, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from server.db.session import Database
from server.db.tenancy_tables import UsageRow, UsageWriterRow
from server.db.usage_rows import COUNTS, HOUR_S, UsageKey, add_usage
from server.errors import InvalidRequest
from server.tenancy.owners import clean
from server.tenancy.repeating import repeating
from server.tenancy.usage.usage_counts import Hourly, UsageCounts, rows_of

DAY_S: Final = 86_400
HOURS_KEPT_DAYS: Final = 62
"""Hours that are older become parts of their day."""
WRITE_S: Final = 2.0
"""How often counts are written: so much of them is lost if the process is killed."""
MOST_RESULTS: Final = 5000
_DAYS_AT_ONCE = 31
_WRITER_DAYS = 2  # a batch is sent again within minutes, or its process is gone

Group = Literal["owner", "user", "key", "model"]
_COLUMNS: Final = {name: getattr(UsageRow, name) for name in ("owner", "user", "key", "model")}


@dataclass(frozen=True)
class Question:
    """What to sum up, of buckets of `width` seconds from `start` on, up to `end`.

    Buckets begin at whole hours or days of UTC, so both times are rounded outwards. None: all.
    """

    start: int
    end: int
    width: int
    group_by: Sequence[Group] = ()
    owners: Sequence[str] | None = None
    users: Sequence[str] | None = None
    keys: Sequence[str] | None = None
    models: Sequence[str] | None = None


@dataclass(frozen=True)
class Place:
    """Where a page begins: at a bucket, behind so many of its results."""

    start: int
    skipped: int = 0


@dataclass(frozen=True)
class Used:
    """The sums of one group in the bucket that begins at `start`. None: not grouped by that."""

    start: int
    owner: str | None
    user: str | None
    key: str | None
    model: str | None
    requests: int
    refusals: int
    prompt: int
    cached: int
    completion: int
    training: int


@dataclass(frozen=True)
class Total:
    """What was used in all under one name, of an owner or, as OWNER/NAME, of an adapter."""

    name: str
    requests: int
    refusals: int
    prompt: int
    cached: int
    completion: int
    training: int


class UsageBook:
    """All usage. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, writer: str, batch: int, counted: Hourly) -> None:
        """Add a batch of a writer, unless it was added before. Its numbers count up."""
        with self._database.transaction() as session:
            last = session.get(UsageWriterRow, writer, with_for_update=True)
            if last is not None and last.batch >= batch:
                return
            now = int(self._database.now(session))
            if last is None:
                session.add(UsageWriterRow(writer=writer, batch=batch, at=now))
            else:
                last.batch, last.at = batch, now
            add_usage(session, rows_of(counted))

    def buckets(
        self, question: Question, place: Place, most_buckets: int
    ) -> tuple[Sequence[int], Sequence[Used], Place | None]:
        """The starts of the buckets of a page, their results, and where the next page begins.

        Raises:
            InvalidRequest: hours are asked for that are kept by the day.
        """
        width = question.width
        first = place.start // width * width
        end = min(-(-question.end // width) * width, first + most_buckets * width)
        with self._database.reading() as session:
            if width < DAY_S:
                _refuse_folded(first, int(self._database.now(session)))
            query = _summed(question, first, end).offset(place.skipped).limit(MOST_RESULTS + 1)
            rows = [_used(row, question.group_by) for row in session.execute(query)]
        if len(rows) > MOST_RESULTS:
            left = rows.pop().start
            given = sum(row.start == left for row in rows)
            skipped = given + (place.skipped if left == first else 0)
            return range(first, left + (width if given else 0), width), rows, Place(left, skipped)
        more = Place(end) if end < question.end else None
        return range(first, end, width), rows, more

    def trained_by_hour(self, since: int) -> dict[int, int]:
        """The tokens that all jobs have trained on in each hour from `since` on."""
        sums = select(UsageRow.start, func.sum(UsageRow.training)).group_by(UsageRow.start)
        with self._database.reading() as session:
            rows = session.execute(sums.where(UsageRow.start >= since))
            return {start: int(tokens) for start, tokens in rows}

    def ranked(self, question: Question, most: int) -> Sequence[Used]:
        """The groups that used most in the whole time together, the busiest first; its buckets'
        width only rounds the times, and the sums are told at its start."""
        width = question.width
        first = question.start // width * width
        end = -(-question.end // width) * width
        groups = [_COLUMNS[name] for name in question.group_by]
        sums = [func.sum(getattr(UsageRow, name)) for name in COUNTS]
        tokens = func.sum(UsageRow.prompt + UsageRow.completion + UsageRow.training)
        work = func.sum(UsageRow.requests + UsageRow.refusals)
        # SQLAlchemy 2.0 and 2.1 differ in what the type holds, hence Any.
        query: Any = select(literal(first), *groups, *sums).where(
            *_conditions(question, first, end)
        )
        query = query.group_by(*groups).order_by(tokens.desc(), work.desc(), *groups).limit(most)
        with self._database.reading() as session:
            return [_used(row, question.group_by) for row in session.execute(query)]

    def owners(self, since: int, most: int, skipped: int = 0) -> tuple[Sequence[Total], bool]:
        """What each owner used since then, those with the most requests first; and whether more
        follow."""
        return self._totals(UsageRow.owner, since, most, skipped)

    def adapters(
        self, since: int, most: int, base: str, names: Sequence[str] | None = None
    ) -> Sequence[Total]:
        """What was used of each adapter since then, whoever used it; with `names` of these alone.
        `base` is the base's id, which is no adapter."""
        # Whoever uses another's adapter counts it as OWNER/NAME, its owner as NAME.
        whole = case(
            (UsageRow.model.contains("/"), UsageRow.model),
            else_=UsageRow.owner + "/" + UsageRow.model,
        )
        of_adapters = [UsageRow.model.not_in(("", base))]
        of_adapters += [] if names is None else [whole.in_(names)]
        return self._totals(whole, since, most, 0, *of_adapters)[0]

    def _totals(
        self,
        name: ColumnElement[str] | InstrumentedAttribute[str],
        since: int,
        most: int,
        skipped: int,
        *conditions: ColumnElement[bool],
    ) -> tuple[Sequence[Total], bool]:
        with self._database.reading() as session:
            folded = since < _horizon(int(self._database.now(session)))
            width = DAY_S if folded else HOUR_S
            sums = [func.sum(getattr(UsageRow, count)) for count in COUNTS]
            whole = name.label("whole")
            query: Any = select(whole, *sums).where(UsageRow.start >= since // width * width)
            query = query.where(*conditions).group_by(whole)
            order = [it.desc() for it in (sums[0], sums[4], sums[5])]
            query = query.order_by(*order, whole).offset(skipped).limit(most + 1)
            rows = session.execute(query).all()
        return [Total(row[0], *map(int, row[1:])) for row in rows[:most]], len(rows) > most

    def fold(self) -> int:
        """Put old hours into their days, some days at a time, and forget writers that are gone.
        Return how many days were folded."""
        days = 0
        while days < _DAYS_AT_ONCE and self._fold_oldest():
            days += 1
        with self._database.transaction() as session:
            old = UsageWriterRow.at < self._database.now(session) - _WRITER_DAYS * DAY_S
            session.execute(delete(UsageWriterRow).where(old))
        return days

    def _fold_oldest(self) -> bool:
        with self._database.transaction() as session:
            horizon = _horizon(int(self._database.now(session)))
            inside = UsageRow.start % DAY_S != 0, UsageRow.start < horizon
            oldest = session.scalar(select(func.min(UsageRow.start)).where(*inside))
            if oldest is None:
                return False
            day = oldest // DAY_S * DAY_S
            hours = UsageRow.start > day, UsageRow.start < day + DAY_S
            add_usage(session, _day_rows(session, day, hours))
            session.execute(delete(UsageRow).where(*hours))
            return True


def _day_rows(
    session: Session, day: int, hours: Iterable[Any]
) -> list[tuple[int, UsageKey, dict[str, int]]]:
    names = [*_COLUMNS.values()]
    sums = [func.sum(getattr(UsageRow, name)) for name in COUNTS]
    rows = session.execute(select(*names, *sums).where(*hours).group_by(*names))
    return [
        (
            day,
            UsageKey(owner=row[0], user=row[1], key=row[2], model=row[3]),
            {name: int(count) for name, count in zip(COUNTS, row[4:], strict=True)},
        )
        for row in rows
    ]


def _horizon(now: int) -> int:
    """Hours before it are kept by the day."""
    return (now // DAY_S - HOURS_KEPT_DAYS) * DAY_S


def _refuse_folded(first: int, now: int) -> None:
    if first < _horizon(now):
        raise InvalidRequest(
            f"usage is kept by the hour for {HOURS_KEPT_DAYS} days, and start_time is older: send "
            "bucket_width=1d, or a later start_time",
            param="start_time",
        )


def _summed(question: Question, first: int, end: int) -> Select[Any]:
    bucket = (UsageRow.start - UsageRow.start % question.width).label("bucket")
    groups = [_COLUMNS[name] for name in question.group_by]
    sums = [func.sum(getattr(UsageRow, name)) for name in COUNTS]
    # SQLAlchemy 2.0 and 2.1 differ in what the type holds, hence Any.
    query: Any = select(bucket, *groups, *sums).where(*_conditions(question, first, end))
    result: Select[Any] = query.group_by(bucket, *groups).order_by(bucket, *groups)
    return result


def _conditions(question: Question, first: int, end: int) -> list[Any]:
    conditions = [UsageRow.start >= first, UsageRow.start < end]
    for name, wanted in (
        ("owner", question.owners),
        ("user", question.users),
        ("key", question.keys),
        ("model", question.models),
    ):
        if wanted is not None:
            conditions.append(_COLUMNS[name].in_([clean(value) for value in wanted]))
    return conditions


def _used(row: Any, group_by: Sequence[Group]) -> Used:
    groups = dict(zip(group_by, row[1:], strict=False))
    return Used(
        row[0],
        groups.get("owner"),
        groups.get("user"),
        groups.get("key"),
        groups.get("model"),
        *map(int, row[1 + len(group_by) :]),
    )


class UsageWriter:
    """Writes what was counted. A batch whose answer is lost is kept, and sent again as it was."""

    def __init__(self, book: UsageBook, counts: UsageCounts) -> None:
        self._book = book
        self._counts = counts
        self._writer = secrets.token_hex(12)
        self._number = 0
        self._batch: Hourly = {}

    def write(self) -> None:
        """Write what is new. Raises Unavailable, and the next call writes it."""
        if not self._batch:
            self._batch = self._counts.take()
            self._number += bool(self._batch)
        else:
            self._counts.collect()
        if self._batch:
            self._book.add(self._writer, self._number, self._batch)
            self._batch = {}


@contextmanager
def writing_usage(
    book: UsageBook, counts: UsageCounts, *, every_s: float = WRITE_S
) -> Iterator[None]:
    """Write what is counted now and then, and at the end of the context."""
    writer = UsageWriter(book, counts)
    with repeating("usage waits to be written", (writer.write, every_s), at_end=writer.write):
        yield
