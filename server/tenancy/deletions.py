"""Owners that are being deleted, in the database. Knows no folders: `server.wiring.owner_removal`
removes what they hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from adapters_store.manifest import check_name
from adapters_store.outside_values import shown
from adapters_store.store_errors import InvalidName
from server.db.audit_trail import record
from server.db.owner_limits import LIMIT_NAMES
from server.db.session import Database
from server.db.tenancy_tables import (
    BucketRow,
    DeletionRow,
    KeyRow,
    LimitRow,
    MembershipRow,
    OwnerRow,
    PlaceRow,
    ShareRow,
    UsageRow,
    UserRow,
)
from server.errors import Conflict, InvalidRequest, NotFound
from server.tenancy.limits.limit_store import bucket_keys
from server.tenancy.owners import clean, find_owner
from server.tenancy.principal import DEFAULT_OWNER
from server.tenancy.revisions import changing

DELETING = "deleting"
DELETED = "deleted"


@dataclass(frozen=True)
class Deletion:
    """The deletion of an owner. `export` names the folder that gets a copy before; None: none.
    `step` is what is done now; "done" at the end."""

    owner: str
    export: str | None
    step: str
    requested_at: int
    done_at: int | None

    @classmethod
    def from_row(cls, row: DeletionRow) -> "Deletion":
        return cls(row.owner, row.export, row.step, row.requested_at, row.done_at)


class Deletions:
    """All deletions. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, owner: str, export: str | None = None) -> Deletion:
        """Revoke the owner's keys, end its shares and let the rest be removed. Once it has begun,
        a second call changes nothing.

        Raises:
            InvalidRequest: `export` may not be a folder's name.
            NotFound: there is no such owner.
            Conflict: it is the server's own, or another's copy has that name.
        """
        if export is not None:
            _check_folder(export)
        with changing(self._database) as (session, revision):
            row = find_owner(session, owner)
            if row.id == DEFAULT_OWNER:
                raise Conflict(f"project {row.id!r} is the server's own, so it cannot be deleted")
            begun = session.get(DeletionRow, row.id)
            if begun is not None:
                return Deletion.from_row(begun)
            if export is not None:
                _refuse_taken(session, export)
            now = int(self._database.now(session))
            row.status, row.archived_at = DELETING, row.archived_at or now
            row.shares_revision = revision
            revoked = update(KeyRow).where(KeyRow.owner == row.id)
            session.execute(revoked.values(revoked_at=now, revision=revision))
            # So that every process forgets them; `finish` removes the row.
            forgotten = update(LimitRow).where(LimitRow.owner == row.id)
            none = dict.fromkeys(LIMIT_NAMES)
            session.execute(forgotten.values(**none, revision=revision))
            received = ShareRow.receiver == row.id
            givers = select(ShareRow.owner).where(received)
            changed = update(OwnerRow).where(OwnerRow.id.in_(givers))
            session.execute(changed.values(shares_revision=revision), execution_options=_SILENT)
            session.execute(delete(ShareRow).where((ShareRow.owner == row.id) | received))
            begun = DeletionRow(owner=row.id, export=export, step="jobs", requested_at=now)
            session.add(begun)
            record(session, now, "project.deleted", row.id, after={"export": export})
            return Deletion.from_row(begun)

    def get(self, owner: str) -> Deletion:
        """Raises NotFound: nobody asked for it."""
        with self._database.reading() as session:
            row = session.get(DeletionRow, clean(owner))
            if row is None:
                raise NotFound(
                    f"project {shown(owner)} is not being deleted: `verandah owners delete` begins"
                )
            return Deletion.from_row(row)

    def unfinished(self, done_after_s: int = 0) -> Sequence[Deletion]:
        """Those that are not done, or not for so long."""
        with self._database.reading() as session:
            oldest = int(self._database.now(session)) - done_after_s
            open_ones = DeletionRow.done_at.is_(None) | (DeletionRow.done_at > oldest)
            query = select(DeletionRow).where(open_ones).order_by(DeletionRow.requested_at)
            return [Deletion.from_row(row) for row in session.scalars(query)]

    def note_step(self, owner: str, step: str) -> None:
        """Say what is done now, for people."""
        with self._database.transaction() as session:
            noted = update(DeletionRow).where(DeletionRow.owner == owner)
            session.execute(noted.values(step=step))

    def finish(self, owner: str) -> None:
        """Forget the owner's people, keys and name. The id stays, so that no other owner gets it:
        others may name adapters by it, and what was counted is counted under it."""
        with changing(self._database) as (session, _):
            row = session.get(OwnerRow, owner)
            assert row is not None  # no deletion is without its owner
            _forget_people(session, owner)
            _keep_totals(session, owner)
            for table in (LimitRow, PlaceRow):
                session.execute(delete(table).where(table.owner == owner))
            buckets = BucketRow.key.in_(bucket_keys(owner))
            session.execute(delete(BucketRow).where(buckets))
            row.name = row.folded = owner
            row.status = DELETED
            noted = update(DeletionRow).where(DeletionRow.owner == owner)
            now = int(self._database.now(session))
            session.execute(noted.values(step="done", done_at=now))


_SILENT = {"synchronize_session": False}


def _keep_totals(session: Session, owner: str) -> None:
    """Of its usage, keep the sums of each hour and day without keys, users and models: accounts
    need them, and the models are named as its adapters."""
    names = ("requests", "refusals", "prompt", "cached", "completion", "training")
    sums: Any = select(UsageRow.start, *(func.sum(getattr(UsageRow, name)) for name in names))
    query = sums.where(UsageRow.owner == owner).group_by(UsageRow.start)
    totals = session.execute(query).all()
    session.execute(delete(UsageRow).where(UsageRow.owner == owner), execution_options=_SILENT)
    for start, *counts in totals:
        named = {name: int(count) for name, count in zip(names, counts, strict=True)}
        session.add(UsageRow(start=start, owner=owner, key="", user="", model="", **named))


def _forget_people(session: Session, owner: str) -> None:
    """Persons stay: they may be members of others."""
    service = select(UserRow.id).where(UserRow.service_of == owner)
    ours = KeyRow.owner == owner, KeyRow.user.in_(service)
    for which in ours:
        session.execute(delete(KeyRow).where(which), execution_options=_SILENT)
    memberships = (MembershipRow.owner == owner) | MembershipRow.user.in_(service)
    session.execute(delete(MembershipRow).where(memberships), execution_options=_SILENT)
    session.execute(delete(UserRow).where(UserRow.service_of == owner), execution_options=_SILENT)


def _refuse_taken(session: Session, export: str) -> None:
    other = session.scalar(select(DeletionRow.owner).where(DeletionRow.export == export))
    if other is not None:
        raise Conflict(f"export {export!r} is the copy of project {other!r}: choose another name")


def _check_folder(name: str) -> None:
    try:
        check_name("export", name)
    except InvalidName as error:
        raise InvalidRequest(
            f"{error}: it names a new folder in the home's folder `exports`", param="export"
        ) from error
