"""What a person's groups at the provider give here. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from adapters_store.manifest import is_name
from server.tenancy.principal import DEFAULT_OWNER, Role

EVERYWHERE = "*"


@dataclass(frozen=True)
class Grants:
    """The owners that groups make somebody a member of, and whether an admin of the server."""

    memberships: Mapping[str, Role]
    server_admin: bool


class GroupMap:
    """Which groups make whom a member of what.

    Args:
        items: each GROUP=OWNER:ROLE. The role is `admin` or `member`; GROUP=*:admin makes an admin
            of the server. A group's own commas and percent signs are written %2C and %25.
        default_owner: whose members they become whom no group makes a member. Empty: nobody's.

    Raises:
        ValueError: an item is not of that form.
    """

    def __init__(self, items: Sequence[str] = (), default_owner: str = "") -> None:
        self._gives = [_parsed(item) for item in items]
        if default_owner and not is_name(default_owner):
            raise ValueError(f"{default_owner!r} is no owner's id: `verandah owners` lists them")
        self._default = default_owner

    @property
    def needs_groups(self) -> bool:
        return bool(self._gives)

    def grants(self, groups: Iterable[str]) -> Grants:
        """The higher role counts where two groups give the same owner."""
        held = set(groups)
        memberships: dict[str, Role] = {}
        for group, owner, role in self._gives:
            if group in held and memberships.get(owner) != "admin":
                memberships[owner] = role
        server_admin = memberships.pop(EVERYWHERE, None) is not None
        if server_admin:
            memberships[DEFAULT_OWNER] = "admin"
        if not memberships and self._default:
            memberships[self._default] = "member"
        return Grants(memberships, server_admin)


def _parsed(item: str) -> tuple[str, str, Role]:
    group, _, place = item.rpartition("=")
    owner, _, role = place.partition(":")
    if not group or not owner or role not in ("admin", "member"):
        raise ValueError(f"{item!r}: write GROUP=OWNER:member or GROUP=OWNER:admin")
    if owner == EVERYWHERE:
        if role != "admin":
            raise ValueError(f"{item!r}: * stands for the whole server, which has admins alone")
    elif not is_name(owner):
        raise ValueError(f"{item!r}: {owner!r} is no owner's id: `verandah owners` lists them")
    return unquote(group), owner, "admin" if role == "admin" else "member"
