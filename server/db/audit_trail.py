"""Writes down who changed what, in the transaction of the change. Knows no requests, reads nothing.

Who acts is known to the context: the API's gate or a sign-in says so for each request, and threads
that work for the request inherit it. Workers and housekeeping act for nobody and record nothing.
"""

import ipaddress
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy.orm import Session

from server.db.tenancy_tables import AuditRow

SERVER: Final = "server"


@dataclass(frozen=True)
class Actor:
    """Who acts: the `name` of a user or key, the `key` that was sent, and from which `address`.

    `owner` is the key's. Without a key it is the server's own, or nobody needs one.
    """

    name: str = SERVER
    key: str | None = None
    user: str | None = None
    owner: str | None = None
    address: str = ""


_NOBODY: Final = Actor()
_ACTING: ContextVar[Actor] = ContextVar("acting", default=_NOBODY)


def act_as(actor: Actor) -> None:
    """Say who acts in this context from now on."""
    _ACTING.set(actor)


def acting() -> Actor:
    """Who acts; the server itself, if nobody has said so."""
    return _ACTING.get()


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Within, a person acts who has signed in, without a key, from the address of the request."""
    before = _ACTING.set(Actor(user, user=user, address=acting().address))
    try:
        yield
    finally:
        _ACTING.reset(before)


@lru_cache(4096)
def address_of(text: str) -> str:
    """An IP address as it is written shortest; empty for what is none, as a proxy may claim."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def record(
    session: Session,
    now: float,
    action: str,
    thing: str,
    *,
    owner: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add a row of the change that this transaction makes. Never give it a secret.

    Args:
        action: KIND.WHAT_HAPPENED, as OpenAI's types of events: `api_key.created`.
        thing: the id of what was changed.
        owner: whose it is. None: it is the server's, and only the server's admin may read of it.
        before: the values that changed, as they were.
        after: the same, as they are now.
    """
    actor = acting()
    session.add(
        AuditRow(
            id=f"audit_log-{secrets.token_hex(12)}",
            at=int(now),
            owner=owner,
            actor=actor.name,
            key=actor.key,
            address=actor.address,
            action=action,
            object=thing,
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
        )
    )
