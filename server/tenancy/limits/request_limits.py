"""Counts the requests and tokens of each owner, in this process. Knows no HTTP and no SQL.

The event loop never waits for the database: what it cannot decide at once, a thread decides, at
most one for each owner at a time. So no owner waits for another's checks.
"""

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Protocol

from server.db.owner_limits import Limits
from server.tenancy.limits.gcra import Verdict
from server.tenancy.limits.leases import LeasedBucket, LeaseStore
from server.tenancy.limits.places import Places
from server.tenancy.limits.rate_answers import Headers, none_left, rate_headers, refused

Run = Callable[..., Awaitable[bool]]

_OPEN_TOKENS = 1024
_OPEN_SHARE = 4


class Store(LeaseStore, Protocol):
    """`server.tenancy.limits.limit_store.DatabaseStore`."""

    def hold(self, owner: str, process: str, wanted: int, limit: int) -> int: ...

    def used(self, key: str, limit: int) -> int: ...

    def taken(self, owner: str) -> int: ...


class Book(Protocol):
    """`server.tenancy.limits.limit_book.LimitBook`."""

    @property
    def defaults(self) -> Limits: ...

    def changes(self, since: int) -> tuple[int, Mapping[str, Limits]]: ...


class OwnerGate:
    """One owner's limits in this process. Thread-safe."""

    def __init__(
        self, store: Store, owner: str, process: str, limits: Limits, clock: Callable[[], float]
    ) -> None:
        self.owner, self.clock = owner, clock
        self.asking = asyncio.Lock()
        self.lock = threading.Lock()
        self.turns = 0  # changed on the event loop alone
        self._store = store
        self._hold = lambda wanted, limit: store.hold(owner, process, wanted, limit)
        self._ended: deque[Turn] = deque()
        self._requests = self._bucket("requests", limits.requests_a_minute)
        self._tokens = self._bucket("tokens", limits.tokens_a_minute)
        self._places = Places(self._hold, limits.requests_at_once)

    def _bucket(self, kind: str, limit: int) -> LeasedBucket | None:
        if not limit:
            return None
        return LeasedBucket(self._store, f"{kind}/{self.owner}", limit, self.clock())

    def enter(self, turn: "Turn", *, ask: bool) -> bool:
        """Count a request, and take a place for it. False: that needs the store, and nothing was
        counted. Raises RateLimited."""
        now = self.clock()
        self._settle()
        buckets_known = self._requests is None or self._requests.known(1, now)
        if not ask and not (buckets_known and (not self._places.limit or self._places.known(now))):
            return False
        if self._tokens is not None:
            turn.tokens = self._tokens.take(0, now)
        if self._requests is not None:
            turn.requests = self._requests.take(1, now, refusal_counts=True)
            if not turn.requests.allowed:
                raise refused("requests", self.owner, turn.requests, 1)
        if not self._places.limit:
            return True
        if not self._places.take(now):
            raise none_left(self.owner, self._places.limit)
        turn.has_place = True
        return True

    def reserve(self, turn: "Turn", tokens: int, *, ask: bool) -> bool:
        """As `enter`, for the tokens of a request."""
        now = self.clock()
        self._settle()
        if self._tokens is None:
            return True
        if not ask and not self._tokens.known(tokens, now):
            return False
        turn.tokens = self._tokens.take(tokens, now)
        if not turn.tokens.allowed:
            raise refused("tokens", self.owner, turn.tokens, tokens)
        turn.reserved = tokens
        return True

    def end(self, turn: "Turn") -> None:
        """The turn is over. What it gives back is there for whoever asks next."""
        self._ended.append(turn)  # not settled here: a thread may hold the lock for a while
        self.turns -= 1

    def tidy(self) -> bool:
        """Tell the store what it should know; returns whether nothing is left to tell."""
        with self.lock:
            self._settle()
            now = self.clock()
            done = [it.tidy(now) for it in (self._requests, self._tokens) if it is not None]
            return self._places.tidy(now) and all(done)

    def change(self, limits: Limits) -> None:
        """Hold other limits from now on."""
        with self.lock:
            self._settle()
            now = self.clock()
            self._requests = self._changed("requests", self._requests, limits.requests_a_minute)
            self._tokens = self._changed("tokens", self._tokens, limits.tokens_a_minute)
            if self._places.limit != limits.requests_at_once:
                self._places.change(limits.requests_at_once, now)

    def _changed(self, kind: str, old: LeasedBucket | None, limit: int) -> LeasedBucket | None:
        if (0 if old is None else old.limit) == limit:
            return old
        if old is not None:
            old.close(self.clock())
        return self._bucket(kind, limit)

    def _settle(self) -> None:
        while self._ended:
            turn = self._ended.popleft()
            if turn.reserved and self._tokens is not None:
                self._tokens.settle(turn.reserved, turn.spent())
            self._places.taken -= turn.has_place


class Turn:
    """A request, from its first byte to the end of its answer."""

    def __init__(self, gate: OwnerGate | None, limits: Limits, run: Run) -> None:
        self.limits = limits
        self.requests: Verdict | None = None
        self.tokens: Verdict | None = None
        self.reserved = 0
        self.has_place = False
        self.spent: Callable[[], int] = lambda: 0  # how many tokens were used, asked at the end
        self._gate = gate
        self._run = run
        self._task: asyncio.Future[bool] | None = None  # the last that a thread was asked

    async def enter(self) -> None:
        """Count the request. Raises RateLimited."""
        if self._gate is not None:
            await self._decide(self._gate, self._gate.enter)

    async def reserve(self, prompt: int, answers: int, *, open_ended: bool) -> None:
        """Set tokens aside for prompts and answers. Raises RateLimited.

        Args:
            open_ended: nobody said how long the answers may be: then so many tokens are what would
                fit, and few are set aside. What is used beyond is counted at the end.
        """
        if self._gate is None:
            return
        if open_ended:
            answers = min(answers, _OPEN_TOKENS, self.limits.tokens_a_minute // _OPEN_SHARE)
        await self._decide(self._gate, self._gate.reserve, prompt + answers)

    def leave(self) -> None:
        """The answer has ended, in whatever way. Once only."""
        if self._gate is None:
            return
        if self._task is None or self._task.done():
            self._gate.end(self)
        else:  # the request was cancelled while a thread takes something for it
            self._task.add_done_callback(self._ended_late)

    def _ended_late(self, task: "asyncio.Future[bool]") -> None:
        assert self._gate is not None
        if not task.cancelled():
            task.exception()  # nobody waits for it any more
        self._gate.end(self)

    def headers(self) -> Headers:
        """What the answer tells of the owner's limits; none where it has none."""
        of_requests = [] if self.requests is None else rate_headers("requests", self.requests)
        return of_requests + ([] if self.tokens is None else rate_headers("tokens", self.tokens))

    async def _decide(self, gate: OwnerGate, step: Callable[..., bool], *arguments: int) -> None:
        if self._at_once(gate, step, arguments):
            return
        async with gate.asking:
            if not self._at_once(gate, step, arguments):
                # Shielded: what the thread takes must be given back when the turn ends.
                call = self._run(self._with_store, gate, step, arguments)
                self._task = asyncio.ensure_future(call)
                await asyncio.shield(self._task)

    def _at_once(
        self, gate: OwnerGate, step: Callable[..., bool], arguments: tuple[int, ...]
    ) -> bool:
        if not gate.lock.acquire(blocking=False):
            return False
        try:
            return step(self, *arguments, ask=False)
        finally:
            gate.lock.release()

    def _with_store(
        self, gate: OwnerGate, step: Callable[..., bool], arguments: tuple[int, ...]
    ) -> bool:
        with gate.lock:
            return step(self, *arguments, ask=True)


TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)
"""The turn of the request that is answered now."""


class RequestLimits:
    """The limits of all owners in this process.

    Args:
        store: what processes share.
        book: the owners' own limits, and the server's. None: there are no limits.
        clock: seconds, for this process alone.
    """

    def __init__(
        self,
        store: Store | None = None,
        book: Book | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._book = book
        self._clock = clock
        self._process = secrets.token_hex(8)
        self._revision = 0
        self._own: dict[str, Limits] = {}
        self._gates: dict[str, OwnerGate] = {}
        self._lock = threading.Lock()  # held while the dicts change, and never for long

    def of(self, owner: str) -> Limits:
        """What an owner may use."""
        own = self._own.get(owner)
        if own is not None:
            return own
        return _NO_LIMITS if self._book is None else self._book.defaults

    def used(self, owner: str) -> Mapping[str, int]:
        """How much of each limit of requests is used at this moment, as all processes share it; of
        what is not limited, nothing is known. Raises Unavailable."""
        limits, store, used = self.of(owner), self._store, {}
        if store is None:
            return {}
        for name, kind in (("requests_a_minute", "requests"), ("tokens_a_minute", "tokens")):
            if limit := getattr(limits, name):
                used[name] = store.used(f"{kind}/{owner}", limit)
        if limits.requests_at_once:
            used["requests_at_once"] = store.taken(owner)
        return used

    def turn(self, owner: str, run: Run) -> Turn:
        """A request of an owner; its caller calls `leave` at its end. `run` calls a function in a
        thread, where the database may be asked."""
        limits = self.of(owner)
        if owner not in self._gates and not _limited(limits):
            return Turn(None, limits, run)
        with self._lock:
            limits = self.of(owner)
            gate = self._gates.get(owner)
            if gate is None:
                assert self._store is not None, "limits are counted where there is a book of them"
                gate = OwnerGate(self._store, owner, self._process, limits, self._clock)
                self._gates[owner] = gate
            gate.turns += 1
        return Turn(gate, limits, run)

    def refresh(self) -> None:
        """Learn of limits that were changed. Raises Unavailable."""
        if self._book is None:
            return
        revision, changed = self._book.changes(self._revision)
        if revision < self._revision:  # an older database was put back
            revision, every = self._book.changes(-1)
            changed = dict.fromkeys(self._own, self._book.defaults) | dict(every)
        with self._lock:
            for owner, limits in changed.items():
                if limits != self._book.defaults:
                    self._own[owner] = limits
                else:  # as those of an owner that is deleted
                    self._own.pop(owner, None)
            gates = [(self._gates[it], changed[it]) for it in changed.keys() & self._gates.keys()]
        for gate, limits in gates:
            gate.change(limits)
        self._revision = revision

    def close(self) -> None:
        """Give back what this process holds. Raises Unavailable."""
        for gate in [*self._gates.values()]:
            gate.change(_NO_LIMITS)

    def tidy(self) -> None:
        """Tell the store what it should know. Raises Unavailable."""
        for owner, gate in [*self._gates.items()]:
            if not gate.tidy():
                continue
            with self._lock:
                if not gate.turns:
                    del self._gates[owner]


def _limited(limits: Limits) -> bool:
    return bool(limits.requests_a_minute or limits.tokens_a_minute or limits.requests_at_once)


_NO_LIMITS = Limits()
