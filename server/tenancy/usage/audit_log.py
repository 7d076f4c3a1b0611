"""Reads the trail of changes, adds those of what is not in the database, drops what is old."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select

from server.db.audit_trail import record
from server.db.session import Database
from server.db.tenancy_tables import AuditRow, UserRow
from server.errors import InvalidRequest
from server.tenancy.owners import clean, folded

_DROPPED_AT_ONCE = 10_000


@dataclass(frozen=True)
class Entry:
    """One change: `actor` is a user or a key, or "server"; `before` and `after` what changed."""

    id: str
    at: int
    owner: str | None
    actor: str
    key: str | None
    address: str
    action: str
    object: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True)
class Wanted:
    """Which entries: those that match every filter that is not empty. Times are inclusive."""

    owners: Sequence[str] = ()
    actions: Sequence[str] = ()
    actors: Sequence[str] = ()
    emails: Sequence[str] = ()
    objects: Sequence[str] = ()
    since: int | None = None
    until: int | None = None


class AuditLog:
    """The trail. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(
        self, action: str, thing: str, *, owner: str, after: Mapping[str, Any] | None = None
    ) -> None:
        """Record a change of what is not in the database: see `record`."""
        with self._database.transaction() as session:
            record(session, self._database.now(session), action, thing, owner=owner, after=after)

    def list(
        self,
        wanted: Wanted,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
    ) -> tuple[Sequence[Entry], bool]:
        """A page of entries, the newest first, and whether more follow in that direction.

        Args:
            after: the page begins behind this entry, so its entries are older.
            before: the page ends in front of this one.

        Raises:
            InvalidRequest: both were given, or the entry is not in the list.
        """
        if after is not None and before is not None:
            raise InvalidRequest("after and before exclude each other: send one", param="before")
        query = select(AuditRow).where(*_conditions(wanted))
        with self._database.reading() as session:
            edge = after if after is not None else before
            if edge is not None:
                place = query.with_only_columns(AuditRow.number).where(AuditRow.id == clean(edge))
                number = session.scalar(place)
                param = "after" if before is None else "before"
                if number is None:
                    raise InvalidRequest(
                        f"{param} is not in this list: send a page's first_id or last_id",
                        param=param,
                    )
                older = AuditRow.number < number
                query = query.where(older if before is None else AuditRow.number > number)
            order = AuditRow.number.desc() if before is None else AuditRow.number
            rows = session.scalars(query.order_by(order).limit(limit + 1)).all()
        page = [_entry(row) for row in rows[:limit]]
        return (page if before is None else page[::-1]), len(rows) > limit

    def drop_older(self, seconds: float) -> int:
        """Delete entries that are older, some at a time; return how many."""
        with self._database.transaction() as session:
            old = AuditRow.at < self._database.now(session) - seconds
            some = session.scalars(select(AuditRow.number).where(old).limit(_DROPPED_AT_ONCE)).all()
            session.execute(delete(AuditRow).where(old, AuditRow.number <= max(some, default=0)))
        return len(some)


def _conditions(wanted: Wanted) -> list[Any]:
    conditions: list[Any] = []
    for column, values in (
        (AuditRow.owner, wanted.owners),
        (AuditRow.action, wanted.actions),
        (AuditRow.object, wanted.objects),
    ):
        if values:
            conditions.append(column.in_([clean(value) for value in values]))
    if wanted.actors:
        names = [clean(name) for name in wanted.actors]
        conditions.append(AuditRow.actor.in_(names) | AuditRow.key.in_(names))
    if wanted.emails:
        emails = [folded(clean(email)) for email in wanted.emails]
        conditions.append(AuditRow.actor.in_(select(UserRow.id).where(UserRow.email.in_(emails))))
    if wanted.since is not None:
        conditions.append(AuditRow.at >= wanted.since)
    if wanted.until is not None:
        conditions.append(AuditRow.at <= wanted.until)
    return conditions


def _entry(row: AuditRow) -> Entry:
    return Entry(
        row.id,
        row.at,
        row.owner,
        row.actor,
        row.key,
        row.address,
        row.action,
        row.object,
        row.before,
        row.after,
    )
