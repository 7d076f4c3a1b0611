"""Finds who an `Authorization` header stands for, mostly without asking the database.

A key that opened something is remembered for a minute, and one that did not as well. `refresh`
forgets those that have changed; `server.tenancy.key_watch` calls it twice a second.
"""

import asyncio
import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from server.errors import Unauthorized
from server.tenancy.found_key import EXPIRED, FoundKey
from server.tenancy.key_book import KeyBook
from server.tenancy.key_text import PREFIX, digest_of, is_marked
from server.tenancy.principal import SERVER_ADMIN, Principal

REMEMBERED_S = 60.0
MOST_KEYS = 20_000  # 15 MB
MOST_REFUSED = 2_000

Run = Callable[..., Awaitable[FoundKey]]


class Keys:
    """The keys of a server. Without a key of its own, it takes requests without one as its
    admin's: that is for a server that only this machine reaches.

    Args:
        api_key: the server's own key.
        book: the keys in the database. None: there are no others.
        clock: Unix seconds.
    """

    def __init__(
        self,
        api_key: str | None = None,
        book: KeyBook | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._own = None if api_key is None else api_key.encode()
        self._book = book
        self._clock = clock
        self._seal: str | None = None
        self._memory = _Memory()
        self._asking: dict[str, asyncio.Task[FoundKey]] = {}
        self._used: dict[int, float] = {}

    @property
    def needed(self) -> bool:
        """Whether requests need a key."""
        return self._own is not None

    async def principal(self, authorization: str | None, run: Run) -> Principal:
        """Whose request it is. `run` calls a function in a thread, where the database may be asked.

        Raises:
            Unauthorized: a key is required, and the header has none or a wrong one.
            Unavailable: the key is not remembered, and the database cannot be asked.
        """
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            if self._own is None:
                return SERVER_ADMIN
            raise Unauthorized(
                "the request has no API key: send the header 'Authorization: Bearer KEY'"
            )
        # Compared in constant time, so that the time of an answer reveals nothing about the key.
        sent = key.encode(errors="surrogateescape")
        if self._own is not None and hmac.compare_digest(sent, self._own):
            return SERVER_ADMIN
        if self._own is None and not key.startswith(PREFIX):
            return SERVER_ADMIN  # SDKs cannot leave the key out, so they send any
        found = await self._found(key, run)
        if found.principal is None:
            raise Unauthorized(found.problem)
        if found.expires_at is not None and found.expires_at <= self._clock():
            raise Unauthorized(EXPIRED)
        return found.principal

    async def _found(self, key: str, run: Run) -> FoundKey:
        if self._book is None or not key.startswith(PREFIX):
            return _NOBODY
        digest = digest_of(key)
        found = self._memory.get(digest, self._clock())
        if found is not None:
            return found
        if self._seal is not None and not is_marked(key, self._seal):
            return _NOBODY  # made up: to look for it would cost a query each
        task = self._asking.get(digest)
        if task is None:  # others with the same key wait for the same answer
            task = asyncio.ensure_future(self._ask(key, digest, run))
            self._asking[digest] = task
            task.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(task)

    async def _ask(self, key: str, digest: str, run: Run) -> FoundKey:
        found = await run(self._look_up, key, digest)
        now = self._clock()
        if found is not _NOBODY:  # else its text alone tells, without a query
            self._memory.put(digest, found, now)
        if found.principal is not None:
            self._used[found.number] = now
        return found

    def _asked(self, digest: str, task: "asyncio.Task[FoundKey]") -> None:
        del self._asking[digest]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may wait any more

    def _look_up(self, key: str, digest: str) -> FoundKey:
        assert self._book is not None
        if self._seal is None:
            self._seal = self._book.seal()
        return self._book.find(digest) if is_marked(key, self._seal) else _NOBODY

    def refresh(self) -> None:
        """Forget the keys that have changed in the database. Raises Unavailable."""
        if self._book is not None:
            self._memory.forget(*self._book.changes(self._memory.revision))

    def write_uses(self) -> None:
        """Write when keys were used. Raises Unavailable, and the next call writes them."""
        used = dict(self._used)
        if used and self._book is not None:
            self._book.note_use(used)
            for number, at in used.items():
                if self._used.get(number) == at:
                    self._used.pop(number, None)


_NOBODY = FoundKey(0)


@dataclass(frozen=True)
class _Remembered:
    found: FoundKey
    until: float


class _Memory:
    """What was found lately. Those that open something and those that do not have room apart, so
    that no flood of refused ones costs the others theirs. Thread-safe."""

    def __init__(self) -> None:
        self.revision = 0
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Remembered] = OrderedDict()
        self._refused: OrderedDict[str, _Remembered] = OrderedDict()

    def get(self, digest: str, now: float) -> FoundKey | None:
        with self._lock:
            for kept in (self._open, self._refused):
                entry = kept.get(digest)
                if entry is not None and entry.until > now:
                    kept.move_to_end(digest)
                    return entry.found
        return None

    def put(self, digest: str, found: FoundKey, now: float) -> None:
        with self._lock:
            if found.revision < self.revision:
                return  # it may have changed since it was read
            self._open.pop(digest, None)
            self._refused.pop(digest, None)
            opens = found.principal is not None
            kept, most = (self._open, MOST_KEYS) if opens else (self._refused, MOST_REFUSED)
            kept[digest] = _Remembered(found, now + REMEMBERED_S)
            if len(kept) > most:
                kept.popitem(last=False)

    def forget(self, revision: int, digests: Iterable[str]) -> None:
        with self._lock:
            if revision < self.revision:  # an older database was put back
                self._open.clear()
                self._refused.clear()
            self.revision = revision
            for digest in digests:
                self._open.pop(digest, None)
                self._refused.pop(digest, None)
