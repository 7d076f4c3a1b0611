"""Adds counts to the table of usage, in its caller's transaction. Knows who counts nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from server.db.tenancy_tables import UsageRow

HOUR_S: Final = 3600
COUNTS: Final = ("requests", "refusals", "prompt", "cached", "completion", "training")
OTHER: Final = "other"


@dataclass(frozen=True, order=True)
class UsageKey:
    """What is counted apart. Empty: unknown, or none."""

    owner: str
    key: str = ""
    user: str = ""
    model: str = ""


Counts = Mapping[str, int]
"""How many of each of `COUNTS`; what is left out is 0."""


def add_usage(session: Session, counted: Iterable[tuple[int, UsageKey, Counts]]) -> None:
    """Add counts of hours, which begin at these Unix seconds. Rows are taken in one order, so that
    processes never wait for each other in a circle."""
    rows = [
        {"start": start, "owner": at.owner, "key": at.key, "user": at.user, "model": at.model}
        | {name: counts.get(name, 0) for name in COUNTS}
        for start, at, counts in sorted(counted, key=lambda one: one[:2])
    ]
    if not rows:
        return
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    insert = sqlite.insert(UsageRow) if is_sqlite else postgresql.insert(UsageRow)
    sums = {name: getattr(UsageRow, name) + insert.excluded[name] for name in COUNTS}
    where = [UsageRow.start, UsageRow.owner, UsageRow.key, UsageRow.user, UsageRow.model]
    session.execute(insert.on_conflict_do_update(index_elements=where, set_=sums), rows)
