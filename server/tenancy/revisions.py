"""Counts the changes of keys and of what they allow, so that each process drops what it remembers.

Every change takes the count's row first. So changes follow one another, and whoever has read up to
a revision has missed none before it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Select, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from adapters_store.outside_values import shown
from server.db.session import Database
from server.db.tenancy_tables import KeyRow, TenancyRow
from server.errors import InvalidRequest

LONGEST_LABEL = 256
_SILENT = {"synchronize_session": False}


@contextmanager
def changing(database: Database) -> Iterator[tuple[Session, int]]:
    """A transaction that changes keys, users or owners, and the change's revision."""
    with database.transaction() as session:
        counted = update(TenancyRow).values(revision=TenancyRow.revision + 1)
        revision = session.scalar(counted.returning(TenancyRow.revision), execution_options=_SILENT)
        assert revision is not None  # the migration has made the row
        yield session, revision


def touch_keys(session: Session, revision: int, *which: ColumnElement[bool]) -> None:
    """Let every process ask again what these keys may do."""
    touched = update(KeyRow).where(*which).values(revision=revision)
    session.execute(touched, execution_options=_SILENT)


def hold_changes(session: Session) -> None:
    """Wait for changes that run, and keep others waiting until the transaction ends."""
    session.execute(select(TenancyRow.revision).with_for_update())


def page_of(
    session: Session,
    query: Select[Any],
    place: InstrumentedAttribute[Any],
    after: ColumnElement[bool] | None,
    limit: int,
    *,
    newest_first: bool = False,
) -> tuple[Sequence[Any], bool]:
    """Rows in the order of `place`, from behind the one that `after` selects, and whether more
    follow. Raises InvalidRequest if there is no such row."""
    if after is not None:
        last = session.scalar(query.with_only_columns(place).where(after))
        if last is None:
            raise InvalidRequest("after is not in this list: send a page's last_id", param="after")
        query = query.where(place < last if newest_first else place > last)
    order = place.desc() if newest_first else place
    rows = session.execute(query.order_by(order).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def printable(value: str, param: str, most: int = LONGEST_LABEL) -> str:
    """A name as people write it, without spaces around it. Raises InvalidRequest."""
    text = value.strip()
    if not text or len(text) > most or not text.isprintable():
        raise InvalidRequest(
            f"{param} {shown(value)} is not a name: use 1 to {most} characters that can be printed",
            param=param,
        )
    return text
