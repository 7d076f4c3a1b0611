"""Who asks, and what they may do. Knows no HTTP and no database."""

from dataclasses import dataclass
from typing import Final, Literal

DEFAULT_OWNER: Final = "default"
"""Owns what was made without a key or with the server's own one."""

Scope = Literal[
    "models.use", "adapters.read", "adapters.write", "files", "jobs", "usage.read", "admin"
]
SCOPES: Final[tuple[Scope, ...]] = (
    *("models.use", "adapters.read", "adapters.write", "files", "jobs", "usage.read", "admin"),
)
USUAL_SCOPES: Final = tuple(scope for scope in SCOPES if scope != "admin")
"""What a new key may do unless its maker says otherwise."""

Role = Literal["admin", "member"]


@dataclass(frozen=True)
class Principal:
    """Whoever sends a request: one owner's key, or the server's admin.

    `key` and `user` are ids. `key` is None for the server's own key and where none is needed.
    `role` is the user's for this owner.
    """

    owner: str
    key: str | None
    user: str | None
    role: Role
    scopes: frozenset[str]
    server_admin: bool = False

    @property
    def name(self) -> str:
        """Who it is, for records of what was done."""
        return self.user or self.key or "server"

    def may(self, scope: Scope) -> bool:
        return self.server_admin or scope in self.scopes

    def manages(self, owner: str) -> bool:
        """Whether it may change the users and keys of `owner`."""
        return self.server_admin or (owner == self.owner and self.may("admin"))


SERVER_ADMIN: Final = Principal(
    owner=DEFAULT_OWNER,
    key=None,
    user=None,
    role="admin",
    scopes=frozenset(SCOPES),
    server_admin=True,
)
"""The holder of the server's own key, and everybody where the server needs none."""
