"""A sign-in from beginning to end. Knows no HTTP of ours, and the provider as a protocol."""

import hashlib
import hmac
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from adapters_store.outside_values import shown
from server.db.audit_trail import acting_as
from server.db.session import Database
from server.errors import Forbidden, InvalidRequest, SignInFailed, Unauthorized
from server.tenancy.found_key import ADMIN, OWNED
from server.tenancy.key_book import KeyBook
from server.tenancy.key_rows import ApiKey
from server.tenancy.people import Member, User
from server.tenancy.principal import DEFAULT_OWNER, SCOPES, USUAL_SCOPES, Principal
from server.tenancy.revisions import printable
from server.tenancy.sign_in.group_map import GroupMap
from server.tenancy.sign_in.identities import Identities, Person
from server.tenancy.sign_in.pending import Goal, Pending
from server.tenancy.sign_in.sessions import CODE_LIFE_S, Sessions, SignedIn, chosen

T = TypeVar("T")
_CONSOLE = "console"


class Provider(Protocol):
    """Where people prove who they are."""

    @property
    def issuer(self) -> str: ...

    async def address(self, pending: Pending, redirect: str) -> str:
        """Where the browser goes. Raises Unavailable."""
        ...

    async def person(self, code: str, pending: Pending, redirect: str) -> Person:
        """Who came back with `code`. Raises Unavailable, SignInFailed."""
        ...


class Run(Protocol):
    """Calls a function in a thread that may wait for the database."""

    def __call__(self, call: Callable[..., T], *args: Any, **named: Any) -> Awaitable[T]: ...


@dataclass(frozen=True)
class Lives:
    """For how many seconds a browser's session is good, and at most a program's key."""

    session_s: int
    key_s: int


class SigningIn:
    """The sign-ins of a server that browsers reach at `public_url`."""

    def __init__(
        self,
        provider: Provider,
        database: Database,
        groups: GroupMap,
        public_url: str,
        lives: Lives,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.public_url = public_url
        self.lives = lives
        self._provider = provider
        self._groups = groups
        self._identities = Identities(database)
        self._sessions = Sessions(database)
        self._book = KeyBook(database)
        self._redirect = f"{public_url}/auth/callback"
        self._clock = clock

    async def begin(self, goal: Goal, run: Run) -> tuple[str, str]:
        """Where the browser goes, and what it keeps meanwhile. Raises Unavailable."""
        pending = Pending.begin(goal, self._clock())
        address = await self._provider.address(pending, self._redirect)
        return address, pending.sealed(await run(self._book.seal))

    async def finish(
        self, query: Mapping[str, str], kept: str | None, run: Run
    ) -> tuple[Goal, str]:
        """The goal of the sign-in that came back, and a session's or a code's text.

        Raises:
            SignInFailed: it is another's, a forged or an old one, or the person may not come in.
            Unavailable: the provider or the database does not answer.
        """
        pending = Pending.opened(kept, await run(self._book.seal), self._clock())
        if not hmac.compare_digest(query.get("state", "").encode(), pending.state.encode()):
            raise SignInFailed("the provider answered to another sign-in: begin again")
        if query.get("iss", self._provider.issuer) != self._provider.issuer:
            raise SignInFailed(f"another provider answered, {shown(query['iss'])}: begin again")
        if "error" in query or not query.get("code"):
            why = query.get("error_description") or query.get("error") or "it sent no code"
            raise SignInFailed(f"the provider refused the sign-in ({shown(why)}): begin again")
        person = await self._provider.person(query["code"], pending, self._redirect)
        user = await run(self._identities.sign_in, person, self._groups.grants(person.groups))
        challenge = pending.goal.challenge
        life = CODE_LIFE_S if challenge else self.lives.session_s
        text = await run(self._sessions.create, user, pending.state, life, challenge=challenge)
        return pending.goal, text

    async def session(self, text: str, run: Run) -> SignedIn:
        """Who is signed in. Raises Unauthorized."""
        return await run(self._sessions.find, text)

    async def end(self, text: str, run: Run) -> None:
        await run(self._sessions.end, text)

    def key(
        self,
        code: str,
        verifier: str,
        *,
        name: str,
        owner: str | None = None,
        admin: bool = False,
        life_s: int | None = None,
    ) -> tuple[User, ApiKey, str]:
        """Make the key of a user who has signed in for a program; the last is its text. Asks the
        database.

        Args:
            owner: whose things the key is for; None: the user's only one.
            admin: make it one of the server's admin.
            life_s: None: as long as keys of sign-ins may live.

        Raises:
            InvalidRequest, Conflict: the name, the life or the owner is wrong.
            SignInFailed: the code is wrong or was used.
            Forbidden: the user is no admin of the server.
        """
        life = self.lives.key_s if life_s is None else life_s
        if not 1 <= life <= self.lives.key_s:
            raise InvalidRequest(
                f"expires_in_seconds={life} is not between 1 and {self.lives.key_s}, which is how "
                "long keys of a sign-in may live here: give fewer",
                param="expires_in_seconds",
            )
        printable(name, "name")
        wanted = DEFAULT_OWNER if admin else owner
        user, member = self._sessions.redeem(code, challenge_of(verifier), wanted)
        key, text = self._made(user, member, name, life, admin)
        return user, key, text

    def console_key(self, session: str, owner: str | None, admin: bool) -> str:
        """Make the key with which the browser of this session uses the console, for as long as the
        session lasts. The one that it had is revoked. Returns the key's text. Asks the database.

        Raises:
            Unauthorized: nobody is signed in.
            Conflict: the user is no member of the owner, or the owner takes no key.
            Forbidden: the user is no admin of the server.
        """
        found = self._sessions.find(session)
        member = chosen(found.members, DEFAULT_OWNER if admin else owner)
        key, text = self._made(found.user, member, _CONSOLE, max(1, found.left_s), admin)
        try:
            self._sessions.hold(session, key.id)
        except Unauthorized:  # it ended just now
            self._book.revoke(key.owner, key.id, kind=key.kind)
            raise
        return text

    def _made(
        self, user: User, member: Member, name: str, life_s: int, admin: bool
    ) -> tuple[ApiKey, str]:
        """A key of a user who has signed in, and its text. The user's roles say what it may do."""
        if admin and user.role != "admin":
            raise Forbidden(
                "you are no admin of this server: sign in for one of your owners, without --admin"
            )
        by = Principal(member.owner, None, user.id, "member", frozenset())
        with acting_as(user.id):
            return self._book.create(
                member.owner,
                name,
                by=by,
                user=user.id,
                scopes=SCOPES if member.role == "admin" else USUAL_SCOPES,
                life_s=life_s,
                kind=ADMIN if admin else OWNED,
            )

    def give_back(self, principal: Principal) -> None:
        """Revoke the key that a request came with. Raises NotFound."""
        kind = ADMIN if principal.server_admin else OWNED
        self._book.revoke(principal.owner, principal.key or "", kind=kind)


def challenge_of(verifier: str) -> str:
    """RFC 7636's S256."""
    digest = hashlib.sha256(verifier.encode(errors="surrogateescape")).digest()
    return urlsafe_b64encode(digest).decode().rstrip("=")
