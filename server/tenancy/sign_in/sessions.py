"""What a sign-in gives: a browser's session, or a code for which a program gets a key. Both are
kept as SHA-256 alone."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.db.audit_trail import acting_as, record
from server.db.session import Database
from server.db.tenancy_tables import MembershipRow, SessionRow, TenancyRow, UserRow
from server.errors import Conflict, SignInFailed, Unauthorized
from server.tenancy.key_text import digest_of, is_marked, new_key
from server.tenancy.people import Member, User
from server.tenancy.sign_in.pending import LIFE_S

BROWSER = "browser"
CODE = "code"
CODE_LIFE_S = 120
_PREFIX = "vs-"
_MOST_OF_ONE = 50  # sign-ins of a user; the oldest makes room


@dataclass(frozen=True)
class SignedIn:
    """A user who is signed in until `expires_at`."""

    user: User
    members: Sequence[Member]
    expires_at: int


class Sessions:
    """All sessions. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, user_id: str, state: str, life_s: int, *, challenge: str = "") -> str:
        """The text of a new session, or, with a `challenge`, of a code. Raises SignInFailed if the
        sign-in of that `state` has given one before."""
        with self._database.transaction() as session:
            # One after another, so that of two with the same state the second sees the first's.
            seal = session.scalars(select(TenancyRow.seal).with_for_update()).one()
            now = int(self._database.now(session))
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= now - LIFE_S))
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
            _make_room(session, user_id)
            return text

    def find(self, text: str) -> SignedIn:
        """Whose session it is. Raises Unauthorized."""
        with self._database.reading() as session:
            row = _row(session, text, BROWSER, self._database.now(session))
            if row is None:
                raise Unauthorized("you are not signed in: open /auth/login")
            return _signed_in(session, row)

    def end(self, text: str) -> None:
        """Does nothing where there is no such session."""
        with self._database.transaction() as session:
            row = _row(session, text, BROWSER, self._database.now(session))
            if row is not None:
                now = self._database.now(session)
                row.expires_at = int(now)
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
            signed_in = _signed_in(session, row)
            member = _chosen(signed_in.members, owner)
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


def _signed_in(session: Session, row: SessionRow) -> SignedIn:
    user = session.scalars(select(UserRow).where(UserRow.id == row.user)).one()
    mine = select(MembershipRow).where(MembershipRow.user == row.user)
    memberships = session.scalars(mine.order_by(MembershipRow.owner)).all()
    members = [Member.from_rows(membership, user) for membership in memberships]
    return SignedIn(User.from_row(user), members, row.expires_at)


def _make_room(session: Session, user_id: str) -> None:
    mine = select(SessionRow.number).where(SessionRow.user == user_id)
    newest = mine.order_by(SessionRow.number.desc()).limit(_MOST_OF_ONE)
    numbers = session.scalars(newest).all()
    old = SessionRow.user == user_id, SessionRow.number < numbers[-1]
    session.execute(delete(SessionRow).where(*old))


def _chosen(members: Sequence[Member], owner: str | None) -> Member:
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
