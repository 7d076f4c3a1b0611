"""Users, and what they may do for owners. A service account is the user of one owner's programs."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.db.audit_trail import record
from server.db.session import Database
from server.db.tenancy_tables import IdentityRow, KeyRow, MembershipRow, SessionRow, UserRow
from server.errors import Conflict, InvalidRequest, NotFound
from server.tenancy.owners import clean, find_owner, folded
from server.tenancy.principal import Role
from server.tenancy.revisions import changing, page_of, printable, touch_keys

MOST_MEMBERS: Final = 1000
"""Service accounts of one owner, and as many persons besides those whom groups made members."""
BY_HAND: Final = "hand"


@dataclass(frozen=True)
class User:
    """A person, or a program if `service_of` names its owner. `role` is that in the server."""

    id: str
    email: str | None
    name: str
    role: str
    service_of: str | None
    added_at: int

    @classmethod
    def from_row(cls, row: UserRow) -> "User":
        return cls(row.id, row.email, row.name, row.role, row.service_of, row.added_at)


@dataclass(frozen=True)
class Member:
    """A user of an owner; `role` and `added_at` are those of the membership."""

    user: User
    owner: str
    role: str
    added_at: int

    @classmethod
    def from_rows(cls, membership: MembershipRow, user: UserRow) -> "Member":
        user_of = User.from_row(user)
        return cls(user_of, membership.owner, membership.role, membership.added_at)


class People:
    """All users and memberships. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def users(
        self, *, after: str | None = None, limit: int = 20, emails: Sequence[str] = ()
    ) -> tuple[Sequence[User], bool]:
        """A page of persons, the first added first. Raises InvalidRequest."""
        query = select(UserRow).where(UserRow.service_of.is_(None))
        if emails:
            query = query.where(UserRow.email.in_([folded(clean(email)) for email in emails]))
        behind = None if after is None else UserRow.id == clean(after)
        with self._database.reading() as session:
            rows, more = page_of(session, query, UserRow.number, behind, limit)
            return [User.from_row(row) for (row,) in rows], more

    def user(self, user_id: str) -> User:
        """Raises NotFound."""
        with self._database.reading() as session:
            return User.from_row(_person(session, user_id))

    def set_role(self, user_id: str, role: Role) -> User:
        """Change a person's role in the server. Raises NotFound."""
        with changing(self._database) as (session, revision):
            row = _person(session, user_id)
            record(
                *(session, self._database.now(session), "user.updated", row.id),
                before={"role": row.role},
                after={"role": role},
            )
            row.role = role
            touch_keys(session, revision, KeyRow.user == row.id)
            return User.from_row(row)

    def delete_user(self, user_id: str) -> None:
        """Delete a person, with the memberships, and revoke the keys. Raises NotFound."""
        with changing(self._database) as (session, revision):
            row, now = _person(session, user_id), self._database.now(session)
            record(session, now, "user.deleted", row.id, before=_facts(row))
            _delete(session, row, revision, now)

    def members(
        self, owner: str, *, service: bool, after: str | None = None, limit: int = 20
    ) -> tuple[Sequence[Member], bool]:
        """A page of an owner's persons or service accounts. Raises InvalidRequest, NotFound."""
        query = _members(owner, service)
        behind = None if after is None else MembershipRow.user == clean(after)
        with self._database.reading() as session:
            find_owner(session, owner)
            rows, more = page_of(session, query, MembershipRow.number, behind, limit)
            return [Member.from_rows(*row) for row in rows], more

    def member(self, owner: str, user_id: str, *, service: bool) -> Member:
        """Raises NotFound."""
        with self._database.reading() as session:
            return Member.from_rows(*_member(session, owner, user_id, service))

    def add(self, owner: str, role: Role, *, user_id: str | None, email: str | None) -> Member:
        """Make a person a member. An email that nobody has makes a new user.

        Raises:
            InvalidRequest, NotFound: there is no such user or owner.
            Conflict: the person is a member already, or the owner has too many.
        """
        with changing(self._database) as (session, _):
            find_owner(session, owner)
            now = int(self._database.now(session))
            if user_id is not None:
                user = _person(session, user_id)
            elif email is not None:
                user = _by_email(session, email, now)
            else:
                raise InvalidRequest("user_id is missing: send it, or email", param="user_id")
            there = select(MembershipRow).where(
                MembershipRow.owner == owner, MembershipRow.user == user.id
            )
            if session.scalar(there) is not None:
                raise Conflict(
                    f"user {user.id!r} is a member of project {owner!r} already: "
                    "modify the membership instead"
                )
            _check_room(session, owner, service=False)
            added = {"role": role, "email": user.email}
            record(session, now, "user.added", user.id, owner=owner, after=added)
            return _join(session, owner, user, role, now)

    def add_service_account(self, owner: str, name: str) -> Member:
        """Make a service account, as a member of its owner. Raises InvalidRequest, NotFound, and
        Conflict if the owner has too many."""
        name = printable(name, "name")
        with changing(self._database) as (session, _):
            find_owner(session, owner)
            _check_room(session, owner, service=True)
            now = int(self._database.now(session))
            user = UserRow(
                id=f"svc_acct_{secrets.token_hex(12)}",
                name=name,
                role="member",
                service_of=owner,
                added_at=now,
            )
            made = {"name": name, "role": user.role}
            record(session, now, "service_account.created", user.id, owner=owner, after=made)
            return _join(session, owner, user, "member", now)

    def change_member(
        self,
        owner: str,
        user_id: str,
        *,
        service: bool,
        role: Role | None = None,
        name: str | None = None,
    ) -> Member:
        """Change a member's role, or a service account's name. Raises InvalidRequest, NotFound."""
        with changing(self._database) as (session, revision):
            membership, user = _member(session, owner, user_id, service)
            before = {"role": membership.role, "name": user.name}
            if role is not None:
                # From now on the word of whoever changes it, and no longer that of groups.
                membership.role, membership.source = role, BY_HAND
                both = KeyRow.owner == owner, KeyRow.user == user.id
                touch_keys(session, revision, *both)
            if name is not None:
                user.name = printable(name, "name")
            record(
                *(session, self._database.now(session), _action(service, "updated"), user.id),
                owner=owner,
                before=before,
                after={"role": membership.role, "name": user.name},
            )
            return Member.from_rows(membership, user)

    def remove(self, owner: str, user_id: str, *, service: bool) -> None:
        """End a membership and revoke its keys; a service account is deleted. Raises NotFound."""
        with changing(self._database) as (session, revision):
            membership, user = _member(session, owner, user_id, service)
            now = self._database.now(session)
            left = {"role": membership.role, "name": user.name}
            record(session, now, _action(service, "deleted"), user.id, owner=owner, before=left)
            if service:
                _delete(session, user, revision, now)
                return
            session.delete(membership)
            revoke_keys(session, user.id, revision, now, owner=owner)


def _action(service: bool, what: str) -> str:
    return f"service_account.{what}" if service else f"user.{what}"


def _facts(user: UserRow) -> dict[str, object]:
    """What the trail keeps of a user."""
    return {"email": user.email, "name": user.name, "role": user.role}


def _person(session: Session, user_id: str) -> UserRow:
    found = select(UserRow).where(UserRow.id == clean(user_id), UserRow.service_of.is_(None))
    row = session.scalar(found)
    if row is None:
        raise NotFound(
            f"user {shown(user_id)} does not exist: GET /v1/organization/users lists them"
        )
    return row


def _members(owner: str, service: bool) -> Select[Any]:
    # SQLAlchemy 2.0 and 2.1 differ in what the type holds, hence Any.
    kind = UserRow.service_of.is_not(None) if service else UserRow.service_of.is_(None)
    joined: Any = select(MembershipRow, UserRow).join(UserRow, UserRow.id == MembershipRow.user)
    query: Select[Any] = joined.where(MembershipRow.owner == clean(owner), kind)
    return query


def _member(
    session: Session, owner: str, user_id: str, service: bool
) -> tuple[MembershipRow, UserRow]:
    find_owner(session, owner)
    mine = _members(owner, service).where(MembershipRow.user == clean(user_id))
    row = session.execute(mine).one_or_none()
    if row is None:
        what = "service account" if service else "user"
        kind = "service_accounts" if service else "users"
        raise NotFound(
            f"{what} {shown(user_id)} is not in project {shown(owner)}: "
            f"GET /v1/organization/projects/{owner}/{kind} lists them"
        )
    return row[0], row[1]


def _check_room(session: Session, owner: str, *, service: bool) -> None:
    """Raise Conflict if an owner has as many members of that kind as it may have."""
    members = _members(owner, service).where(MembershipRow.source == BY_HAND)
    count = session.scalar(members.with_only_columns(func.count()))
    if (count or 0) >= MOST_MEMBERS:
        what = "service accounts" if service else "users who were added by hand"
        raise Conflict(
            f"project {owner!r} has {MOST_MEMBERS} {what} already, which is the most: delete those "
            "that are not needed"
        )


def _by_email(session: Session, email: str, now: int) -> UserRow:
    """The person of that address, or a new one."""
    address = folded(printable(email, "email"))
    local, at, domain = address.rpartition("@")
    if not (local and at and domain) or " " in address:
        raise InvalidRequest(
            f"email {shown(email)} is not an address: write NAME@DOMAIN", param="email"
        )
    row = session.scalar(select(UserRow).where(UserRow.email == address))
    if row is None:
        user_id = f"user-{secrets.token_hex(12)}"
        row = UserRow(id=user_id, email=address, name=local, role="member", added_at=now)
    return row


def _join(session: Session, owner: str, user: UserRow, role: Role, now: int) -> Member:
    session.add(user)
    session.flush()
    membership = MembershipRow(owner=owner, user=user.id, role=role, added_at=now)
    session.add(membership)
    return Member.from_rows(membership, user)


def _delete(session: Session, user: UserRow, revision: int, now: float) -> None:
    revoke_keys(session, user.id, revision, now)
    session.flush()
    session.execute(delete(SessionRow).where(SessionRow.user == user.id))
    session.execute(delete(IdentityRow).where(IdentityRow.user_number == user.number))
    session.execute(delete(MembershipRow).where(MembershipRow.user == user.id))
    session.delete(user)


def revoke_keys(
    session: Session,
    user_id: str,
    revision: int,
    now: float,
    *,
    owner: str | None = None,
    kind: str | None = None,
) -> None:
    """Revoke a user's keys, of one owner or kind or all. Of all: the user goes, so no key may name
    them."""
    where = [KeyRow.user == user_id]
    where += [] if owner is None else [KeyRow.owner == owner]
    where += [] if kind is None else [KeyRow.kind == kind]
    for key in session.scalars(select(KeyRow).where(*where)):
        key.revoked_at = key.revoked_at or int(now)
        key.revision = revision
        if owner is None and kind is None:
            key.user = None
