"""Threads for what would block the event loop, apart by kind: no kind waits for another.

A database that is locked keeps every thread waiting that asks it. So answers have threads of their
own, and so have the calls that write to the database and those that only read it.
"""

import asyncio
import functools
import inspect
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from fastapi.routing import APIRoute

from server.db.audit_trail import acting
from server.errors import Unavailable

ANSWERING: Final = 16
DATABASE: Final = 16  # that write, and as many that read
_KEYS: Final = 4
_SIGN_INS: Final = 4
_LIMITS: Final = 8
_LINE_S: Final = 10.0
_NO_OWNER: Final = ""

P = ParamSpec("P")
T = TypeVar("T")


class ThreadGroup:
    """At most `most` threads. A call that gets none within `patience_s` seconds is refused.

    No owner takes more of them than it leaves free, and those whose calls wait have turns: one that
    sends slow calls without end does not keep others waiting. Calls with the server's own key, or
    without a key, may take all, so a server of one owner loses nothing.
    """

    def __init__(self, most: int, what: str, patience_s: float = 3.0) -> None:
        self._most = most
        self._what = what
        self._patience_s = patience_s
        self._running: Counter[str] = Counter()  # by owner
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by owner, the next turn first
        self._limiter = CapacityLimiter(most)

    async def run(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call in a thread. Raises Unavailable, and what the call raises."""
        actor = acting()
        owner = actor.owner if actor.owner and actor.key else _NO_OWNER
        await self._enter(owner)
        try:
            work = functools.partial(call, *args, **named)
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._leave(owner)

    async def _enter(self, owner: str) -> None:
        if owner not in self._waiting and self._has_room(owner):
            self._running[owner] += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            async with asyncio.timeout(self._patience_s):
                await turn
        except BaseException as error:
            self._give_up(owner, turn)
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"{self._running.total()} requests that {self._what} are running already, "
                    f"{self._running[owner]} of them yours, and none made room for another for "
                    f"{self._patience_s:g} s: try again in a few seconds, and see /ready"
                ) from None
            raise

    def _has_room(self, owner: str) -> bool:
        free = self._most - self._running.total()
        return free > (0 if owner == _NO_OWNER else self._running[owner])

    def _leave(self, owner: str) -> None:
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        self._start_waiting()

    def _give_up(self, owner: str, turn: "asyncio.Future[None]") -> None:
        if turn.done() and not turn.cancelled():  # its turn came at the same moment
            return self._leave(owner)
        line = self._waiting[owner]
        line.remove(turn)
        if not line:
            del self._waiting[owner]

    def _start_waiting(self) -> None:
        """Start what may: of each owner one call. An owner whose call starts goes to the end."""
        for owner in [*self._waiting]:
            turn = next((it for it in self._waiting[owner] if not it.done()), None)
            if turn is None or not self._has_room(owner):
                continue
            line = self._waiting.pop(owner)
            line.remove(turn)
            if line:
                self._waiting[owner] = line
            self._running[owner] += 1
            turn.set_result(None)


class Threads:
    """The threads of one server.

    Long prompts and training files are read one at a time: such work takes a whole core for
    seconds, and others need the cores too.
    """

    def __init__(self) -> None:
        self.answering = ThreadGroup(ANSWERING, "wait to be checked")
        self.keys = ThreadGroup(_KEYS, "check API keys")
        self.sign_ins = ThreadGroup(_SIGN_INS, "sign in")
        self.limits = ThreadGroup(_LIMITS, "count requests and tokens")
        self.reading = ThreadGroup(DATABASE, "read the database")
        self.writing = ThreadGroup(DATABASE, "write to the database")
        self.long_prompts = ThreadGroup(1, "tokenize long prompts", _LINE_S)
        self.file_checks = ThreadGroup(1, "check training files", _LINE_S)


class DatabaseRoute(APIRoute):
    """A route whose function works with the database: it runs in the threads for that."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if not inspect.iscoroutinefunction(endpoint):  # else it was wrapped before, or uses none
            endpoint = _in_threads(endpoint, reads=options.get("methods") == ["GET"])
        super().__init__(path, endpoint, **options)


class ChangingRoute(APIRoute):
    """A route of things that are not in the database: what changes one is recorded there, so it
    runs in the threads that write to it. What only reads needs no database."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if options.get("methods") != ["GET"] and not inspect.iscoroutinefunction(endpoint):
            endpoint = _in_threads(endpoint, reads=False)
        super().__init__(path, endpoint, **options)


def _in_threads(endpoint: Callable[..., Any], *, reads: bool) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def run(**named: Any) -> Any:
        threads = cast(Threads, named["services"].threads)
        return await (threads.reading if reads else threads.writing).run(endpoint, **named)

    return run
