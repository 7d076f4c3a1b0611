"""Who at the provider is which user here, and the memberships that their groups give."""

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db.audit_trail import acting_as, record
from server.db.session import Database
from server.db.tenancy_tables import IdentityRow, KeyRow, MembershipRow, OwnerRow, UserRow
from server.errors import SignInFailed
from server.tenancy.found_key import ADMIN
from server.tenancy.owners import folded
from server.tenancy.people import revoke_keys
from server.tenancy.revisions import changing, touch_keys
from server.tenancy.sign_in.group_map import Grants

log = logging.getLogger(__name__)

BY_GROUP = "groups"
_LONGEST = 256  # characters of a name or an email


@dataclass(frozen=True)
class Person:
    """What the provider says of somebody. `issuer` and `subject` together are who it is.

    `email` is empty unless the provider has verified it.
    """

    issuer: str
    subject: str
    name: str = ""
    email: str = ""
    groups: Sequence[str] = ()


class Identities:
    """All identities. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sign_in(self, person: Person, grants: Grants) -> str:
        """Bring the user's memberships up to what the groups give; those given by hand stay.
        Returns the user's id. A person seen for the first time becomes a user, or the one whom an
        admin has added by this email.

        Raises:
            SignInFailed: nothing is left that this person may use.
        """
        with changing(self._database) as (session, revision):
            now = int(self._database.now(session))
            identity = _identity(session, person)
            if identity is None:
                identity = _new_identity(session, person, grants, now)
            if identity is not None:
                identity.last_sign_in_at = now
                user = session.get_one(UserRow, identity.user_number)
                _describe(session, user, person)
                with acting_as(user.id):
                    _follow_groups(session, user, grants, revision, now)
                    _follow_admin(session, user, identity, grants, revision, now)
                    session.flush()
                    member = select(MembershipRow.number).where(MembershipRow.user == user.id)
                    if session.scalar(member.limit(1)) is not None:
                        return user.id
                    record(session, now, "login.failed", user.id)
        # Behind the transaction: what the groups no longer give is gone all the same.
        raise SignInFailed(
            "you signed in, but none of your groups opens this server to you: ask who runs it for "
            "a membership"
        )


def _identity(session: Session, person: Person) -> IdentityRow | None:
    found = select(IdentityRow).where(
        IdentityRow.issuer == person.issuer, IdentityRow.subject == person.subject
    )
    return session.scalar(found)


def _new_identity(session: Session, person: Person, grants: Grants, now: int) -> IdentityRow | None:
    """None for somebody whom no group and no invitation lets in: strangers leave no rows."""
    user = _invited(session, person.email)
    if user is None:
        if not _existing(session, grants.memberships):
            return None
        user = UserRow(id=f"user-{secrets.token_hex(12)}", name="", role="member", added_at=now)
        session.add(user)
        session.flush()
    identity = IdentityRow(
        issuer=person.issuer, subject=person.subject, user_number=user.number, created_at=now
    )
    session.add(identity)
    return identity


def _invited(session: Session, email: str) -> UserRow | None:
    """The user whom an admin added by this email, unless somebody has signed in as them before."""
    if not email:
        return None
    taken = select(IdentityRow.user_number)
    wanted = select(UserRow).where(UserRow.email == folded(email), UserRow.number.not_in(taken))
    return session.scalar(wanted.where(UserRow.service_of.is_(None)))


def _describe(session: Session, user: UserRow, person: Person) -> None:
    """The name and email that people see. Neither decides anything of a known person."""
    email = folded(person.email)
    held = select(UserRow.number).where(UserRow.email == email)
    if 0 < len(email) <= _LONGEST and session.scalar(held) is None:
        user.email = email
    readable = "".join(filter(str.isprintable, person.name)).strip()[:_LONGEST]
    user.name = readable or user.name or email.partition("@")[0] or user.id


def _follow_groups(
    session: Session, user: UserRow, grants: Grants, revision: int, now: int
) -> None:
    rows = session.scalars(select(MembershipRow).where(MembershipRow.user == user.id))
    held = {row.owner: row for row in rows}
    for owner in _existing(session, grants.memberships):
        role, row = grants.memberships[owner], held.pop(owner, None)
        if row is None:
            new = MembershipRow(owner=owner, user=user.id, role=role, added_at=now, source=BY_GROUP)
            session.add(new)
            given = {"role": role, "email": user.email}
            record(session, now, "user.added", user.id, owner=owner, after=given)
        elif row.source == BY_GROUP and row.role != role:
            record(
                *(session, now, "user.updated", user.id),
                owner=owner,
                before={"role": row.role},
                after={"role": role},
            )
            row.role = role
            touch_keys(session, revision, KeyRow.owner == owner, KeyRow.user == user.id)
    for row in held.values():
        if row.source == BY_GROUP:
            session.delete(row)
            left = {"role": row.role}
            record(session, now, "user.deleted", user.id, owner=row.owner, before=left)
            revoke_keys(session, user.id, revision, now, owner=row.owner)


def _follow_admin(
    session: Session,
    user: UserRow,
    identity: IdentityRow,
    grants: Grants,
    revision: int,
    now: int,
) -> None:
    """An admin of the server by hand stays one; one by groups is one as long as the groups say."""
    before = {"role": user.role}
    if grants.server_admin and user.role != "admin":
        user.role, identity.admin_by_groups = "admin", True
    elif identity.admin_by_groups and not grants.server_admin:
        user.role, identity.admin_by_groups = "member", False
        revoke_keys(session, user.id, revision, now, kind=ADMIN)
    else:
        return
    record(session, now, "user.updated", user.id, before=before, after={"role": user.role})


def _existing(session: Session, owners: Iterable[str]) -> Sequence[str]:
    wanted = sorted(owners)
    found = session.scalars(select(OwnerRow.id).where(OwnerRow.id.in_(wanted))).all()
    for owner in {*wanted} - {*found}:
        log.warning(
            "groups give the owner %r, which does not exist: make it, or correct --oidc-groups",
            owner,
        )
    return found
