"""Adapters that owners share with others. The database has them, and each process remembers them.

A request asks the memory alone. `refresh` brings it up to date, and `server.tenancy.key_watch`
calls it twice a second. A change counts in its owner's row, which tells of ended shares too.
"""

import secrets
import threading
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.db.audit_trail import record
from server.db.session import Database
from server.db.tenancy_tables import OwnerRow, ShareRow, TenancyRow
from server.errors import Conflict, InvalidRequest, NotFound
from server.tenancy.owners import ACTIVE, EVERYBODY, clean, find_owner, folded
from server.tenancy.principal import Principal
from server.tenancy.revisions import changing, page_of
from server.tenancy.visibility import ShareTo

MOST_SHARES: Final = 1000
MOST_WITH_ONE: Final = 100
"""Of one owner's adapters shared with the same other, or with all."""
MOST_LISTED: Final = 1000
"""Of those that are shared with one owner by name, and as many shared with all: the newest are in
its lists of adapters. Many owners may share with the same one, or with all."""


@dataclass(frozen=True)
class Share:
    """An adapter, all versions but checkpoints, as another owner may use or copy it.

    `receiver` None: all owners.
    """

    number: int
    id: str
    owner: str
    adapter: str
    receiver: str | None
    to: ShareTo
    created_at: int
    created_by: str

    @classmethod
    def from_row(cls, row: ShareRow) -> "Share":
        to = cast(ShareTo, row.to)
        place = row.number, row.id, row.owner, row.adapter, row.receiver
        return cls(*place, to, row.created_at, row.created_by)

    @property
    def place(self) -> tuple[int, str, str]:
        return self.number, self.owner, self.adapter


class Shares:
    """All shares. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._memory = _Memory()

    def given(self, owner: str, of: str, name: str) -> ShareTo | None:
        """How `of` shares its adapter with `owner`. Asks the database only if it never did."""
        self._begin()
        return self._memory.given(owner, of, name)

    def received(self, owner: str) -> Sequence[str]:
        """The newest adapters that others share with `owner`, as OWNER/NAME, sorted."""
        self._begin()
        return self._memory.received(owner)

    def shared_by(self, owner: str) -> Set[str]:
        """The names of the adapters that an owner shares."""
        self._begin()
        return self._memory.shared_by(owner)

    def refresh(self) -> None:
        """Read what has changed. Raises Unavailable."""
        since = self._memory.revision
        with self._database.reading() as session:
            revision = session.scalar(select(TenancyRow.revision)) or 0
            if revision == since:
                return
            if revision < since:  # an older database was put back
                since = -1
            changed = select(OwnerRow.id).where(OwnerRow.shares_revision > since)
            owners = session.scalars(changed).all()
            mine = select(ShareRow).join(OwnerRow, OwnerRow.id == ShareRow.owner)
            mine = mine.where(OwnerRow.status == ACTIVE, OwnerRow.shares_revision > since)
            rows = session.scalars(mine.order_by(ShareRow.number))
            shares = [Share.from_row(row) for row in rows]
        self._memory.replace(None if since < 0 else owners, shares, revision)

    def give(self, owner: str, adapter: str, whom: str, to: ShareTo, *, by: Principal) -> Share:
        """Share an adapter, or change how it is shared with the same receiver.

        Args:
            whom: another owner's id or name, or "all".

        Raises:
            InvalidRequest: the receiver is the owner itself.
            NotFound: there is no such receiver.
            Conflict: the owner shares too many, or is archived.
        """
        with changing(self._database) as (session, revision):
            status = find_owner(session, owner).status
            if status != ACTIVE:
                raise Conflict(f"project {owner!r} is {status}, so it shares nothing")
            receiver = _receiver(session, whom)
            if receiver == owner:
                raise InvalidRequest(
                    f"adapter {adapter!r} is {owner!r}'s own: name another owner, or {EVERYBODY!r}",
                    param="with",
                )
            same = ShareRow.owner == owner, ShareRow.adapter == adapter, _is(receiver)
            row = session.scalar(select(ShareRow).where(*same))
            if row is None:
                _check_room(session, owner, receiver)
                row = ShareRow(
                    id=f"share_{secrets.token_hex(12)}",
                    owner=owner,
                    adapter=adapter,
                    receiver=receiver,
                    created_at=int(self._database.now(session)),
                    created_by=by.name,
                )
                session.add(row)
            before = None if row.to is None else {"to": row.to}
            row.to = to
            session.flush()
            named = {"adapter": adapter, "with": receiver or EVERYBODY}
            record(
                *(session, self._database.now(session), "adapter.shared", row.id),
                owner=owner,
                before=before,
                after={**named, "to": to},
            )
            touch_shares(session, owner, revision)
            share = Share.from_row(row)
        self.refresh()
        return share

    def list(
        self,
        owner: str,
        *,
        received: bool = False,
        adapter: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[Sequence[Share], bool]:
        """A page of the shares that an owner gives, or receives from those that are active, the
        first given first. Raises InvalidRequest."""
        query: Any = select(ShareRow)
        if received:
            mine = (ShareRow.receiver == owner) | ShareRow.receiver.is_(None)
            query = query.join(OwnerRow, OwnerRow.id == ShareRow.owner)
            query = query.where(mine, ShareRow.owner != owner, OwnerRow.status == ACTIVE)
        else:
            query = query.where(ShareRow.owner == owner)
        if adapter is not None:
            query = query.where(ShareRow.adapter == clean(adapter))
        behind = None if after is None else ShareRow.id == clean(after)
        with self._database.reading() as session:
            rows, more = page_of(session, query, ShareRow.number, behind, limit)
            return [Share.from_row(row) for (row,) in rows], more

    def end(self, owner: str, share_id: str) -> None:
        """End a share that the owner gives. Raises NotFound."""
        if not self._end(owner, ShareRow.id == clean(share_id)):
            raise NotFound(
                f"share {shown(share_id)} does not exist or is not yours: GET /v1/shares lists them"
            )

    def end_all_of(self, owner: str, adapter: str) -> None:
        """End the shares of an adapter that is deleted. Writes only if there are any, so that
        adapters can be deleted on a full disk."""
        with self._database.reading() as session:
            mine = ShareRow.owner == owner, ShareRow.adapter == adapter
            if session.scalar(select(ShareRow.id).where(*mine).limit(1)) is None:
                return
        self._end(owner, ShareRow.adapter == adapter)

    def _end(self, owner: str, which: ColumnElement[bool]) -> bool:
        mine = ShareRow.owner == owner, which
        with self._database.reading() as session:  # a wrong id must not make every process read
            if session.scalar(select(ShareRow.id).where(*mine).limit(1)) is None:
                return False
        with changing(self._database) as (session, revision):
            now = self._database.now(session)
            for row in session.scalars(select(ShareRow).where(*mine)):
                ended = {"adapter": row.adapter, "with": row.receiver or EVERYBODY, "to": row.to}
                record(session, now, "adapter.unshared", row.id, owner=owner, before=ended)
            session.execute(delete(ShareRow).where(*mine))
            touch_shares(session, owner, revision)
        self.refresh()
        return True

    def _begin(self) -> None:
        if self._memory.revision < 0:
            self.refresh()


def touch_shares(session: Session, owner: str, revision: int) -> None:
    """Let every process read again what an owner shares."""
    touched = update(OwnerRow).where(OwnerRow.id == owner).values(shares_revision=revision)
    session.execute(touched)


class _Memory:
    """All shares. What costs time grows with one owner's shares alone. Thread-safe."""

    def __init__(self) -> None:
        self.revision = -1
        self._lock = threading.Lock()
        self._rights: dict[tuple[str | None, str, str], ShareTo] = {}  # receiver, owner, adapter
        self._of: dict[str, list[Share]] = {}  # by owner
        # By receiver, None for all: number, owner and adapter, the first given first.
        self._received: dict[str | None, list[tuple[int, str, str]]] = {}

    def given(self, owner: str, of: str, name: str) -> ShareTo | None:
        with self._lock:
            own, everybodys = (self._rights.get((who, of, name)) for who in (owner, None))
        return "copy" if "copy" in (own, everybodys) else own or everybodys

    def received(self, owner: str) -> list[str]:
        with self._lock:
            lists = [self._received.get(who, [])[-MOST_LISTED:] for who in (owner, None)]
        return sorted({f"{of}/{name}" for each in lists for _, of, name in each if of != owner})

    def shared_by(self, owner: str) -> Set[str]:
        with self._lock:
            return {share.adapter for share in self._of.get(owner, ())}

    def replace(self, owners: Iterable[str] | None, shares: Iterable[Share], revision: int) -> None:
        """Forget what these owners share (None: everybody), and remember `shares`."""
        with self._lock:
            if owners is None:
                for kept in (self._rights, self._of, self._received):
                    kept.clear()
            elif revision < self.revision:
                return  # another thread has read a newer state meanwhile
            for owner in owners or ():
                for share in self._of.pop(owner, ()):
                    self._forget(share)
            for share in shares:
                self._rights[share.receiver, share.owner, share.adapter] = share.to
                self._of.setdefault(share.owner, []).append(share)
                insort(self._received.setdefault(share.receiver, []), share.place)
            self.revision = revision

    def _forget(self, share: Share) -> None:
        self._rights.pop((share.receiver, share.owner, share.adapter), None)
        received = self._received[share.receiver]
        del received[bisect_left(received, share.place)]
        if not received:
            del self._received[share.receiver]


def _is(receiver: str | None) -> ColumnElement[bool]:
    return ShareRow.receiver.is_(None) if receiver is None else ShareRow.receiver == receiver


def _receiver(session: Session, whom: str) -> str | None:
    """The id of an owner, by id or name; None for all. Raises NotFound."""
    if whom == EVERYBODY:
        return None
    named = (OwnerRow.id == clean(whom)) | (OwnerRow.folded == folded(clean(whom)))
    found = select(OwnerRow.id).where(named, OwnerRow.status == ACTIVE)
    receiver = session.scalars(found).first()
    if receiver is None:
        raise NotFound(
            f"project {shown(whom)} does not exist: name another project's id, or {EVERYBODY!r}"
        )
    return receiver


def _check_room(session: Session, owner: str, receiver: str | None) -> None:
    count = select(func.count()).select_from(ShareRow).where(ShareRow.owner == owner)
    for most, query in ((MOST_SHARES, count), (MOST_WITH_ONE, count.where(_is(receiver)))):
        if (session.scalar(query) or 0) >= most:
            whom = "" if most == MOST_SHARES else f" with {receiver or EVERYBODY!r}"
            raise Conflict(
                f"project {owner!r} shares {most} adapters{whom} already, which is the most: end "
                "one of these shares first"
            )
