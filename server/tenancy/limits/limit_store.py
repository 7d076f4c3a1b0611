"""What all processes share of owners' limits, in the database. Each call is one transaction."""

from sqlalchemy import ColumnElement, delete, exc, func, select
from sqlalchemy.orm import Session

from server.db.session import Database
from server.db.tenancy_tables import BucketRow, PlaceRow
from server.tenancy.limits.gcra import PERIOD_S, Bucket
from server.tenancy.limits.leases import Lease

LOST_S = 20.0
"""Places of a process that was not seen for so long are free again."""


class DatabaseStore:
    """See `server.tenancy.limits.leases.LeaseStore`. Raises Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def exchange(
        self, key: str, limit: int, *, least: float, most: float, back: float, owed: float
    ) -> Lease:
        with self._database.transaction() as session:
            row = _locked(session, key)
            now = self._database.now(session)
            # Of a clock that was set back, as full as it can be owed.
            bucket = Bucket(limit, min(row.full_at, now + 2 * PERIOD_S))
            taken = bucket.exchange(now, least=least, most=most, back=back, owed=owed)
            row.full_at = bucket.full_at
            return Lease(taken, bucket.available(now))

    def hold(self, owner: str, process: str, wanted: int, limit: int) -> int:
        """Let a process have `wanted` of the owner's `limit` places, or as many as others leave
        it; returns how many it has now."""
        with self._database.transaction() as session:
            # One row that all processes lock, since a sum cannot be locked.
            key = f"places/{owner}"
            _locked(session, key)
            now = self._database.now(session)
            others = (PlaceRow.owner == owner) & (PlaceRow.process != process)
            held = max(min(wanted, limit - _held(session, others, now)), 0)
            mine = session.get(PlaceRow, (owner, process))
            if mine is not None:
                mine.held, mine.seen_at = held, now
            else:
                lost = PlaceRow.owner == owner, PlaceRow.seen_at < now - LOST_S
                session.execute(delete(PlaceRow).where(*lost))
                session.add(PlaceRow(owner=owner, process=process, held=held, seen_at=now))
            return held

    def used(self, key: str, limit: int) -> int:
        """How much of a shared bucket is used at this moment."""
        with self._database.reading() as session:
            row = session.get(BucketRow, key)
            if row is None:
                return 0
            left = Bucket(limit, row.full_at).available(self._database.now(session))
            return max(limit - int(left + 1e-6), 0)

    def taken(self, owner: str) -> int:
        """How many of the owner's places all processes have."""
        with self._database.reading() as session:
            now = self._database.now(session)
            return _held(session, PlaceRow.owner == owner, now)


def bucket_keys(owner: str) -> list[str]:
    """The keys of all that an owner may have here."""
    return [f"{kind}/{owner}" for kind in ("requests", "tokens", "places")]


def _held(session: Session, places: ColumnElement[bool], now: float) -> int:
    """How many of these places processes have that are there still."""
    seen = PlaceRow.seen_at.between(now - LOST_S, now + LOST_S)
    return int(session.scalar(select(func.sum(PlaceRow.held)).where(places, seen)) or 0)


def _locked(session: Session, key: str) -> BucketRow:
    """The row of that key, which is made if it is missing, locked until the transaction ends."""
    row = session.get(BucketRow, key, with_for_update=True)
    if row is not None:
        return row
    new = BucketRow(key=key, full_at=0.0)
    try:
        with session.begin_nested():
            session.add(new)
    except exc.IntegrityError:  # another process has made it meanwhile
        return session.get_one(BucketRow, key, with_for_update=True)
    return new
