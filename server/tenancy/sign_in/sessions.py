"""What a sign-in gives: a browser's session, or a code for which a program gets a key. Both are
kept as SHA-256 alone. A session has one key at a time for the console, which ends with it."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.db.audit_trail import acting_as, record
from server.db.session import Database
from server.db.tenancy_tables import KeyRow, MembershipRow, SessionRow, TenancyRow, UserRow
from server.errors import Conflict, SignInFailed, Unauthorized
from server.tenancy.key_rows import facts, readers
from server.tenancy.key_text import digest_of, is_marked, new_key
from server.tenancy.people import Member, User
from server.tenancy.revisions import changing
from server.tenancy.sign_in.pending import LIFE_S

BROWSER = "browser"
CODE = "code"
CODE_LIFE_S = 120
_PREFIX = "vs-"
_MOST_OF_ONE = 50  # sign-ins of a user; the oldest makes room


@dataclass(frozen=True)
class SignedIn:
    """A user who is signed in until `expires_at`, which is in `left_s` seconds."""

    user: User
    members: Sequence[Member]
    expires_at: int
    left_s: int


class Sessions:
    """All sessions. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, user_id: str, state: str, life_s: int, *, challenge: str = "") -> str:
        """The text of a new session, or, with a `challenge`, of a code. Raises SignInFailed if the
        sign-in of that `state` has given one before."""
        # One after another, so that of two with the same state the second sees the first's.
        with changing(self._database) as (session, revision):
            seal = session.scalars(select(TenancyRow.seal)).one()
            now = int(self._database.now(session))
            _forget(session, SessionRow.expires_at <= now - LIFE_S, revision=revision, now=now)
            used = select(SessionRow.number).where(SessionRow.state_sha256 == digest_of(state))
            if session.scalar(used) is not None:
                raise SignInFailed("this sign-in was used before: begin again")
            text = new_key(seal, _PREFIX)
            session.add(
                SessionRow(
                    sha256=digest_of(text),
                    state_sha256=digest_of(state),
                    user=user_id,
                    kind=CODE if challenge else BROWSER,
                    challenge=challenge,
                    created_at=now,
                    expires_at=now + life_s,
                )
            )
            with acting_as(user_id):
                record(session, now, "login.succeeded", user_id)
            session.flush()
            _make_room(session, user_id, revision, now)
            return text

    def find(self, text: str) -> SignedIn:
        """Whose session it is. Raises Unauthorized."""
        with self._database.reading() as session:
            now = self._database.now(session)
            row = _row(session, text, BROWSER, now)
            if row is None:
                raise _not_signed_in()
            return _signed_in(session, row, now)

    def hold(self, text: str, key: str) -> None:
        """Give the session a key, and revoke the one that it had. Raises Unauthorized."""
        with changing(self._database) as (session, revision):
            now = self._database.now(session)
            row = _row(session, text, BROWSER, now)
            if row is None:
                raise _not_signed_in()
            _revoke_key(session, row, revision, now)
            row.key = key

    def end(self, text: str) -> None:
        """End a session, and revoke its key. Does nothing where there is no such session."""
        with changing(self._database) as (session, revision):
            now = self._database.now(session)
            row = _row(session, text, BROWSER, now)
            if row is not None:
                row.expires_at = int(now)
                _revoke_key(session, row, revision, now)
                with acting_as(row.user):
                    record(session, now, "logout.succeeded", row.user)

    def redeem(self, code: str, challenge: str, owner: str | None) -> tuple[User, Member]:
        """Whose code it is, and the membership that the key is for. A code is good once; a wrong
        `owner` does not use it up.

        Raises:
            SignInFailed: nobody has such a code.
            Conflict: the user is no member of the owner, or of several and named none.
        """
        with self._database.transaction() as session:
            now = self._database.now(session)
            row = _row(session, code, CODE, now)
            if row is None or not hmac.compare_digest(row.challenge, challenge):
                raise SignInFailed(
                    "the code of this sign-in is wrong, used or too old: begin again"
                )
            signed_in = _signed_in(session, row, now)
            member = chosen(signed_in.members, owner)
            row.expires_at = int(now)
            return signed_in.user, member


def _row(session: Session, text: str, kind: str, now: float) -> SessionRow | None:
    seal = session.scalars(select(TenancyRow.seal)).one()
    if not is_marked(text, seal):
        return None
    found = select(SessionRow).where(
        SessionRow.sha256 == digest_of(text), SessionRow.kind == kind, SessionRow.expires_at > now
    )
    return session.scalar(found.with_for_update())


def _signed_in(session: Session, row: SessionRow, now: float) -> SignedIn:
    user = session.scalars(select(UserRow).where(UserRow.id == row.user)).one()
    mine = select(MembershipRow).where(MembershipRow.user == row.user)
    memberships = session.scalars(mine.order_by(MembershipRow.owner)).all()
    members = [Member.from_rows(membership, user) for membership in memberships]
    return SignedIn(User.from_row(user), members, row.expires_at, row.expires_at - int(now))


def _not_signed_in() -> Unauthorized:
    return Unauthorized("you are not signed in: open /auth/login")


def _revoke_key(session: Session, row: SessionRow, revision: int, now: float) -> None:
    held = select(KeyRow).where(KeyRow.id == (row.key or ""), KeyRow.revoked_at.is_(None))
    key = session.scalar(held)
    if key is not None:
        key.revoked_at, key.revision = int(now), revision
        with acting_as(row.user):
            record(session, now, "api_key.deleted", key.id, owner=readers(key), before=facts(key))


def _make_room(session: Session, user_id: str, revision: int, now: int) -> None:
    mine = select(SessionRow.number).where(SessionRow.user == user_id)
    newest = mine.order_by(SessionRow.number.desc()).limit(_MOST_OF_ONE)
    oldest = session.scalars(newest).all()[-1]
    old = SessionRow.user == user_id, SessionRow.number < oldest
    _forget(session, *old, revision=revision, now=now)


def _forget(session: Session, *which: ColumnElement[bool], revision: int, now: int) -> None:
    """Delete sessions, and refuse their keys, of which nobody could dispose any more."""
    keys = select(SessionRow.key).where(*which, SessionRow.key.is_not(None))
    ended = update(KeyRow).where(KeyRow.id.in_(keys), KeyRow.revoked_at.is_(None))
    session.execute(ended.values(revoked_at=now, revision=revision))
    session.execute(delete(SessionRow).where(*which))


def chosen(members: Sequence[Member], owner: str | None) -> Member:
    """The membership for an owner; None: the only one. Raises Conflict."""
    if owner is None and len(members) == 1:
        return members[0]
    for member in members:
        if member.owner == owner:
            return member
    owners = ", ".join(member.owner for member in members) or "none"
    if owner is None:
        raise Conflict(
            f"you are a member of {owners}: name the one that the key is for, as --owner"
        )
    raise Conflict(f"you are no member of {shown(owner)}: name one of yours ({owners}) as --owner")
