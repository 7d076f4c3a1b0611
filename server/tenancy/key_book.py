"""The keys in the database: makes, finds, lists, changes and revokes them. Remembers none."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.db.audit_trail import record
from server.db.session import Database
from server.db.tenancy_tables import KeyRow, MembershipRow, TenancyRow, UserRow
from server.errors import Conflict, InvalidRequest, NotFound
from server.tenancy.found_key import ADMIN, OWNED, FoundKey, found_key
from server.tenancy.key_rows import ApiKey, api_key, facts, listed, looked_up, one, readers, row_of
from server.tenancy.key_text import digest_of, new_key, shown_part
from server.tenancy.owners import ACTIVE, clean, find_owner
from server.tenancy.principal import SCOPES, USUAL_SCOPES, Principal
from server.tenancy.revisions import changing, hold_changes, page_of, printable

LONGEST_LIFE_S = 100 * 365 * 86_400
MOST_KEYS: Final = 1000
"""Of one owner that are in force, besides those of its persons."""
MOST_OF_PERSON: Final = 100
"""Of one person for one owner."""
_USED_S = 60


class KeyBook:
    """All keys. Raises Unavailable where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def seal(self) -> str:
        """What marks the keys of this database."""
        with self._database.reading() as session:
            return session.scalars(select(TenancyRow.seal)).one()

    def find(self, digest: str) -> FoundKey:
        """The key with that SHA-256. One query."""
        with self._database.reading() as session:
            revision, key, owner, user, member = session.execute(looked_up(digest)).one()
            if key is None:
                return FoundKey(revision)
            now = self._database.now(session)
        return found_key(key, owner, user, member, revision, now)

    def changes(self, since: int) -> tuple[int, Sequence[str]]:
        """The revision, and the SHA-256 of each key that has changed after `since`."""
        with self._database.reading() as session:
            revision = session.scalar(select(TenancyRow.revision)) or 0
            if revision == since:
                return revision, ()
            changed = select(KeyRow.sha256).where(KeyRow.revision > since)
            return revision, session.scalars(changed).all()

    def create(
        self,
        owner: str,
        name: str,
        *,
        by: Principal,
        user: str | None = None,
        scopes: Sequence[str] | None = None,
        life_s: int | None = None,
        kind: str = OWNED,
    ) -> tuple[ApiKey, str]:
        """Make a key. Returns it and its text, which is kept nowhere.

        Raises:
            InvalidRequest: the name, a scope or the life is wrong.
            NotFound: there is no such owner, or the user is no member.
            Conflict: the owner is archived, or it or the person has too many keys in force.
        """
        name = printable(name, "name")
        allowed = SCOPES if kind == ADMIN else _checked_scopes(scopes)
        with changing(self._database) as (session, revision):
            now = int(self._database.now(session))
            _check_place(session, owner, user)
            _check_room(session, owner, kind, user, now)
            row, text = _added(
                session,
                revision,
                kind=kind,
                owner=owner,
                user=user,
                name=name,
                scopes=list(allowed),
                created_at=now,
                created_by=by.name,
                expires_at=None if life_s is None else now + _checked_life(life_s),
            )
            record(session, now, "api_key.created", row.id, owner=readers(row), after=facts(row))
            return one(session, row.owner, row.id, kind), text

    def list(
        self,
        owner: str,
        *,
        kind: str = OWNED,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = False,
    ) -> tuple[Sequence[ApiKey], bool]:
        """A page of an owner's keys that were not revoked. Raises InvalidRequest, NotFound."""
        query = listed(owner, kind)
        behind = None if after is None else KeyRow.id == clean(after)
        with self._database.reading() as session:
            find_owner(session, owner)
            rows, more = page_of(
                session, query, KeyRow.number, behind, limit, newest_first=newest_first
            )
            return [api_key(*row) for row in rows], more

    def names(self, key_ids: Sequence[str]) -> Mapping[str, str]:
        """What people call these keys, of all owners; revoked ones too."""
        query = select(KeyRow.id, KeyRow.name).where(KeyRow.id.in_(key_ids))
        with self._database.reading() as session:
            return {key_id: name for key_id, name in session.execute(query)}

    def get(self, owner: str, key_id: str, *, kind: str = OWNED) -> ApiKey:
        """Raises NotFound."""
        with self._database.reading() as session:
            find_owner(session, owner)
            return one(session, owner, key_id, kind)

    def change(
        self,
        owner: str,
        key_id: str,
        *,
        scopes: Sequence[str] | None = None,
        life_s: int | None = None,
    ) -> ApiKey:
        """Replace the scopes, or let it expire so long after now. Raises InvalidRequest, NotFound,
        and Conflict if it has expired."""
        with changing(self._database) as (session, revision):
            row, now = row_of(session, owner, key_id, OWNED), int(self._database.now(session))
            if row.expires_at is not None and row.expires_at <= now:
                raise Conflict(f"key {row.id!r} has expired: make a new one")
            before = facts(row)
            if scopes is not None:
                row.scopes = list(_checked_scopes(scopes))
            if life_s is not None:
                row.expires_at = now + _checked_life(life_s)
            row.revision = revision
            session.flush()
            record(
                *(session, now, "api_key.updated", row.id),
                owner=owner,
                before=before,
                after=facts(row),
            )
            return one(session, owner, row.id, OWNED)

    def rotate(
        self, owner: str, key_id: str, *, by: Principal, grace_s: int
    ) -> tuple[ApiKey, str, ApiKey]:
        """Make a key with the rights of another, which then expires after `grace_s`.

        Returns the new one, its text, and the old one. Raises as `create`, and Conflict if the key
        has expired.
        """
        if not 0 <= grace_s <= LONGEST_LIFE_S:
            raise InvalidRequest(
                f"grace_seconds={grace_s} is not between 0 and {LONGEST_LIFE_S}: give fewer",
                param="grace_seconds",
            )
        with changing(self._database) as (session, revision):
            old, now = row_of(session, owner, key_id, OWNED), int(self._database.now(session))
            if old.expires_at is not None and old.expires_at <= now:
                raise Conflict(f"key {old.id!r} has expired: make a new one")
            _check_room(session, owner, OWNED, old.user, now, besides=old.id)
            new, text = _added(
                session,
                revision,
                kind=old.kind,
                owner=old.owner,
                user=old.user,
                name=old.name,
                scopes=list(old.scopes),
                created_at=now,
                created_by=by.name,
                expires_at=_same_life(old, now),
            )
            before = facts(old)
            old.expires_at = min(now + grace_s, old.expires_at or now + grace_s)
            old.revision = revision
            session.flush()
            made = facts(new) | {"replaces": old.id}
            record(session, now, "api_key.created", new.id, owner=owner, after=made)
            record(
                *(session, now, "api_key.updated", old.id),
                owner=owner,
                before=before,
                after=facts(old),
            )
            return (
                one(session, owner, new.id, OWNED),
                text,
                one(session, owner, old.id, OWNED),
            )

    def revoke(self, owner: str, key_id: str, *, kind: str = OWNED) -> None:
        """Refuse a key from now on, and list it no longer. Raises NotFound."""
        with changing(self._database) as (session, revision):
            row = row_of(session, owner, key_id, kind)
            now = self._database.now(session)
            row.revoked_at, row.revision = int(now), revision
            record(session, now, "api_key.deleted", row.id, owner=readers(row), before=facts(row))

    def note_use(self, used: Mapping[int, float]) -> None:
        """Write when keys, by number, were last used; for each at most once a minute."""
        with self._database.transaction() as session:
            hold_changes(session)
            for number, at in used.items():
                old = KeyRow.last_used_at.is_(None) | (KeyRow.last_used_at <= int(at) - _USED_S)
                noted = update(KeyRow).where(KeyRow.number == number, old)
                session.execute(noted.values(last_used_at=int(at)))


def _added(session: Session, revision: int, **fields: object) -> tuple[KeyRow, str]:
    """A new row, and the key's text."""
    text = new_key(session.scalars(select(TenancyRow.seal)).one())
    row = KeyRow(
        id=f"key_{secrets.token_hex(12)}",
        sha256=digest_of(text),
        prefix=shown_part(text),
        revision=revision,
        **fields,
    )
    session.add(row)
    session.flush()
    return row, text


def _check_place(session: Session, owner: str, user: str | None) -> None:
    row = find_owner(session, owner)
    if row.status != ACTIVE:
        raise Conflict(f"project {owner!r} is {row.status}, so its keys would open nothing")
    if user is not None:
        member = MembershipRow.owner == owner, MembershipRow.user == clean(user)
        if session.scalar(select(MembershipRow).where(*member)) is None:
            raise NotFound(
                f"user {shown(user)} is not in project {shown(owner)}: add the user first"
            )


def _check_room(
    session: Session, owner: str, kind: str, user: str | None, now: int, *, besides: str = ""
) -> None:
    """Raise Conflict if there are as many keys as there may be, not counting `besides`."""
    accounts = select(UserRow.id).where(UserRow.service_of == owner)
    if user is None or session.scalar(accounts.where(UserRow.id == user)) is not None:
        most, whose = MOST_KEYS, f"project {owner!r} has {MOST_KEYS} keys"
        which = [KeyRow.kind == kind, KeyRow.user.is_(None) | KeyRow.user.in_(accounts)]
    else:
        most, which = MOST_OF_PERSON, [KeyRow.user == user]
        whose = f"user {user!r} has {most} keys for project {owner!r}"
    in_force = KeyRow.expires_at.is_(None) | (KeyRow.expires_at > now)
    mine = KeyRow.owner == owner, KeyRow.id != besides, KeyRow.revoked_at.is_(None), in_force
    count = session.scalar(select(func.count()).select_from(KeyRow).where(*mine, *which))
    if (count or 0) >= most:
        raise Conflict(f"{whose} already, which is the most: revoke those that are not needed")


def _checked_scopes(scopes: Sequence[str] | None) -> Sequence[str]:
    """The scopes in their usual order. None given: all but `admin`."""
    if not scopes:
        return USUAL_SCOPES
    wrong = next((scope for scope in scopes if scope not in SCOPES), None)
    if wrong is not None:
        raise InvalidRequest(
            f"scope {shown(wrong)} does not exist: use {', '.join(SCOPES)}", param="scopes"
        )
    return [scope for scope in SCOPES if scope in scopes]


def _checked_life(life_s: int) -> int:
    if not 1 <= life_s <= LONGEST_LIFE_S:
        raise InvalidRequest(
            f"expires_in_seconds={life_s} is not between 1 and {LONGEST_LIFE_S}: leave it out for "
            "a key that does not expire",
            param="expires_in_seconds",
        )
    return life_s


def _same_life(old: KeyRow, now: int) -> int | None:
    """A new key lives as long from now as the old one did from its making."""
    return None if old.expires_at is None else now + old.expires_at - old.created_at
