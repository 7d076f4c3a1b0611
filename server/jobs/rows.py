"""Find rows by the ids that users see, and page through them. Knows no rules of jobs or files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.db.tables import FileRow, OwnedRow
from server.errors import InvalidRequest

T = TypeVar("T")
Row = TypeVar("Row", bound=OwnedRow)

MAX_LIMIT = 10_000


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some items of a list, and whether more follow."""

    items: tuple[T, ...]
    has_more: bool


def find(
    session: Session, table: type[Row], owner: str, row_id: str, *, lock: bool = False
) -> Row | None:
    """The owner's row of that id; with `lock` nobody else changes it in this transaction."""
    if not row_id.isprintable():  # PostgreSQL refuses NUL, which no id has
        return None
    # SQLAlchemy 2.0 and 2.1 differ in what the type holds, hence Any.
    query: Select[Any] = select(table).where(table.id == row_id, table.owner == owner)
    row: Row | None = session.scalar(query.with_for_update() if lock else query)
    return row


def find_file(
    session: Session, owner: str, file_id: str, now: float, *, lock: bool = False
) -> FileRow | None:
    """The owner's file of that id, unless it has expired."""
    row = find(session, FileRow, owner, file_id, lock=lock)
    expired = row is not None and row.expires_at is not None and row.expires_at <= now
    return None if expired else row


def count(session: Session, table: type[OwnedRow], owner: str) -> int:
    """How many rows the owner has."""
    query = select(func.count()).select_from(table).where(table.owner == owner)
    return session.scalar(query) or 0


def page(
    session: Session,
    table: type[Row],
    item: Callable[[Row], T],
    where: Sequence[ColumnElement[bool]],
    after: str | None,
    limit: int,
    *,
    newest_first: bool = True,
) -> Page[T]:
    """Rows that follow the row of id `after`, each as an `item`.

    Raises:
        InvalidRequest: `limit` is out of range, or `after` is not in the list.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit={limit} is not between 1 and {MAX_LIMIT}", param="limit")
    query = select(table).where(*where)
    if after is not None:
        last = select(table.number).where(table.id == after, *where)
        number = session.scalar(last) if after.isprintable() else None
        if number is None:
            raise InvalidRequest(f"after={shown(after)} is not in this list", param="after")
        query = query.where(table.number < number if newest_first else table.number > number)
    order = table.number.desc() if newest_first else table.number
    rows = session.scalars(query.order_by(order).limit(limit + 1)).all()
    return Page(tuple(map(item, rows[:limit])), len(rows) > limit)
