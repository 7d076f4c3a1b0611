"""Keys as rows of the database: how they are found, and what is told of them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, select
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.db.tenancy_tables import KeyRow, MembershipRow, OwnerRow, TenancyRow, UserRow
from server.errors import NotFound
from server.tenancy.found_key import ADMIN
from server.tenancy.owners import ACTIVE, clean, find_owner


@dataclass(frozen=True)
class ApiKey:
    """A key without its text. `kind`: "owner", or "admin" for one of the server's admin.

    `user` is whose it is, with `service` if that is a service account; None: of nobody.
    """

    id: str
    kind: str
    owner: str
    user: str | None
    user_name: str | None
    user_email: str | None
    service: bool
    role: str
    name: str
    scopes: tuple[str, ...]
    prefix: str
    created_at: int
    created_by: str
    expires_at: int | None
    last_used_at: int | None
    revoked_at: int | None
    active: bool


def looked_up(digest: str) -> Select[Any]:
    """One row in any case: the revision, and the key with that SHA-256 with its owner, user and
    membership. One statement, so it sees the key and the revision at the same moment."""
    rows: Any = select(TenancyRow.revision, KeyRow, OwnerRow, UserRow, MembershipRow)
    query: Select[Any] = rows.select_from(TenancyRow).outerjoin(KeyRow, KeyRow.sha256 == digest)
    return _with_places(query)


def listed(owner: str, kind: str) -> Select[Any]:
    """The keys of an owner that were not revoked, as `api_key` takes them."""
    mine = KeyRow.owner == clean(owner), KeyRow.kind == kind, KeyRow.revoked_at.is_(None)
    # SQLAlchemy 2.0 and 2.1 differ in what the type holds, hence Any.
    rows: Any = select(KeyRow, OwnerRow, UserRow, MembershipRow)
    return _with_places(rows.select_from(KeyRow).where(*mine))


def one(session: Session, owner: str, key_id: str, kind: str) -> ApiKey:
    """Raises NotFound."""
    row = session.execute(listed(owner, kind).where(KeyRow.id == clean(key_id))).one_or_none()
    if row is None:
        raise _no_such_key(key_id, kind)
    return api_key(*row)


def row_of(session: Session, owner: str, key_id: str, kind: str) -> KeyRow:
    """A key to change. Raises NotFound."""
    find_owner(session, owner)
    found = select(KeyRow).where(
        KeyRow.owner == owner,
        KeyRow.id == clean(key_id),
        KeyRow.kind == kind,
        KeyRow.revoked_at.is_(None),
    )
    row = session.scalar(found)
    if row is None:
        raise _no_such_key(key_id, kind)
    return row


def api_key(
    key: KeyRow, owner: OwnerRow, user: UserRow | None, membership: MembershipRow | None
) -> ApiKey:
    return ApiKey(
        id=key.id,
        kind=key.kind,
        owner=key.owner,
        user=key.user,
        user_name=None if user is None else user.name,
        user_email=None if user is None else user.email,
        service=user is not None and user.service_of is not None,
        role="member" if membership is None else membership.role,
        name=key.name,
        scopes=tuple(key.scopes),
        prefix=key.prefix,
        created_at=key.created_at,
        created_by=key.created_by,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
        active=owner.status == ACTIVE and (user is None or membership is not None),
    )


def readers(key: KeyRow) -> str | None:
    """Whose admins may read of the key: an admin key is the server's."""
    return None if key.kind == ADMIN else key.owner


def facts(key: KeyRow) -> dict[str, object]:
    """What the trail keeps of a key: never its text nor the hash of it."""
    return {
        "name": key.name,
        "user": key.user,
        "scopes": list(key.scopes),
        "expires_at": key.expires_at,
    }


def _with_places(query: Select[Any]) -> Select[Any]:
    """Keys with their owner, and with their user and membership, which may be None."""
    member = and_(MembershipRow.owner == KeyRow.owner, MembershipRow.user == KeyRow.user)
    return (
        query.outerjoin(OwnerRow, OwnerRow.id == KeyRow.owner)
        .outerjoin(UserRow, UserRow.id == KeyRow.user)
        .outerjoin(MembershipRow, member)
    )


def _no_such_key(key_id: str, kind: str) -> NotFound:
    if kind == ADMIN:
        listed = "GET /v1/organization/admin_api_keys lists them"
    else:
        listed = "`verandah keys list --owner OWNER` lists an owner's"
    return NotFound(f"key {shown(key_id)} does not exist or is not yours: {listed}")
