"""The owners' own limits in the database: tells and changes them. Remembers none."""

import math
from collections.abc import Mapping, Sequence

from sqlalchemy import select

from adapters_store.outside_values import shown
from server.db.audit_trail import record
from server.db.owner_limits import LIMIT_NAMES, Limits, limits_of
from server.db.session import Database
from server.db.tenancy_tables import LimitRow, TenancyRow
from server.errors import InvalidRequest
from server.tenancy.owners import find_owner
from server.tenancy.revisions import changing

MOST = 2**53  # what JSON's readers can hold exactly
_WEIGHTS = (0.01, 100.0)


class LimitBook:
    """All owners' limits; `defaults` are the server's. Raises Unavailable where the database cannot
    be reached."""

    def __init__(self, database: Database, defaults: Limits) -> None:
        self._database = database
        self.defaults = defaults

    def get(self, owner: str) -> Limits:
        """What an owner may use. Raises NotFound."""
        with self._database.reading() as session:
            return limits_of(session, find_owner(session, owner).id, self.defaults)

    def of_all(self, owners: Sequence[str]) -> Mapping[str, Limits]:
        """What each of these owners may use."""
        with self._database.reading() as session:
            rows = session.scalars(select(LimitRow).where(LimitRow.owner.in_(owners))).all()
        own = {row.owner: row for row in rows}
        return {owner: self.defaults.with_row(own.get(owner)) for owner in owners}

    def change(self, owner: str, values: Mapping[str, float | None]) -> Limits:
        """Set some limits of an owner; None: as the server's from now on.

        Raises:
            NotFound: there is no such owner.
            InvalidRequest: a value is none of that limit.
        """
        for name, value in values.items():
            _check(name, value)
        with changing(self._database) as (session, revision):
            row_id = find_owner(session, owner).id
            row = session.get(LimitRow, row_id)
            if row is None:
                row = LimitRow(owner=row_id)
                session.add(row)
            before = {name: getattr(row, name) for name in values}
            row.revision = revision
            for name, value in values.items():
                setattr(row, name, value)
            record(
                *(session, self._database.now(session), "rate_limit.updated", row_id),
                owner=row_id,
                before=before,
                after=dict(values),
            )
            return self.defaults.with_row(row)

    def changes(self, since: int) -> tuple[int, Mapping[str, Limits]]:
        """The revision, and the limits of each owner whose own have changed after `since`."""
        with self._database.reading() as session:
            revision = session.scalar(select(TenancyRow.revision)) or 0
            if revision == since:
                return revision, {}
            rows = session.scalars(select(LimitRow).where(LimitRow.revision > since)).all()
            return revision, {row.owner: self.defaults.with_row(row) for row in rows}


def _check(name: str, value: float | None) -> None:
    if name not in LIMIT_NAMES:
        raise InvalidRequest(
            f"limit {shown(name)} does not exist: use {', '.join(LIMIT_NAMES)}", param=name
        )
    if value is None:
        return
    if name == "weight":
        low, high = _WEIGHTS
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequest(
                f"weight={value} is not between {low} and {high:g}: give another", param=name
            )
    elif not 0 <= value <= MOST:
        raise InvalidRequest(
            f"{name}={value} is not between 0 (no limit) and {MOST}: give another", param=name
        )
