"""What a key's rows say of it: whom it stands for, or why it opens nothing. Asks no database."""

from dataclasses import dataclass
from typing import Final

from server.db.tenancy_tables import KeyRow, MembershipRow, OwnerRow, UserRow
from server.tenancy.owners import ACTIVE
from server.tenancy.principal import Principal

ADMIN: Final = "admin"
OWNED: Final = "owner"
EXPIRED: Final = "the API key has expired: ask who runs the server for another"


@dataclass(frozen=True)
class FoundKey:
    """What the database says of a key's text, as of `revision`. `problem` says why it opens
    nothing, and is empty if it does."""

    revision: int
    number: int = 0
    principal: Principal | None = None
    expires_at: float | None = None
    problem: str = "the API key is unknown: check it, or ask who runs the server for another"


def found_key(
    key: KeyRow,
    owner: OwnerRow,
    user: UserRow | None,
    membership: MembershipRow | None,
    revision: int,
    now: float,
) -> FoundKey:
    problem = _problem(key, owner, user, membership, now)
    if problem:
        return FoundKey(revision, key.number, problem=problem)
    # A key of nobody has what its maker gave it; a user's key never more than the user's role.
    manages = key.user is None or (membership is not None and membership.role == "admin")
    scopes = frozenset(scope for scope in key.scopes if manages or scope != "admin")
    principal = Principal(
        owner=key.owner,
        key=key.id,
        user=key.user,
        role="admin" if manages and "admin" in scopes else "member",
        scopes=scopes,
        # Never by a user's role in the server: an owner's admin may make keys for any member.
        server_admin=key.kind == ADMIN,
    )
    return FoundKey(revision, key.number, principal, key.expires_at, problem="")


def _problem(
    key: KeyRow,
    owner: OwnerRow,
    user: UserRow | None,
    membership: MembershipRow | None,
    now: float,
) -> str:
    if key.revoked_at is not None:
        return "the API key was revoked: ask who runs the server for another"
    if key.expires_at is not None and key.expires_at <= now:
        return EXPIRED
    if owner.status != ACTIVE:
        return f"the project {owner.id!r} of this API key is {owner.status}: use another's key"
    if key.kind == ADMIN and user is not None and user.role != "admin":
        return "the user of this admin key is no admin of the server any more: use another key"
    if user is not None and membership is None:
        return f"the user of this API key left the project {owner.id!r}: use another key"
    return ""
