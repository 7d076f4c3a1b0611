"""Threads for what would block the event loop, apart by kind: no kind waits for another.

A database that is locked keeps every thread waiting that asks it. So answers have threads of their
own, and so have the calls that write to the database and those that only read it.
"""

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from fastapi.routing import APIRoute

from server.errors import Unavailable

ANSWERING: Final = 16
DATABASE: Final = 16  # that write, and as many that read
_KEYS: Final = 4
_SIGN_INS: Final = 4
_LIMITS: Final = 8
_LINE_S: Final = 10.0

P = ParamSpec("P")
T = TypeVar("T")


class ThreadGroup:
    """At most `most` threads. A call that gets none within `patience_s` seconds is refused."""

    def __init__(self, most: int, what: str, patience_s: float = 3.0) -> None:
        self._most = most
        self._what = what
        self._patience_s = patience_s
        self._places = asyncio.Semaphore(most)
        self._limiter = CapacityLimiter(most)

    async def run(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call in a thread. Raises Unavailable, and what the call raises."""
        try:
            async with asyncio.timeout(self._patience_s if self._places.locked() else None):
                await self._places.acquire()
        except TimeoutError:
            raise Unavailable(
                f"{self._most} requests that {self._what} are running already, and none has ended "
                f"for {self._patience_s:g} s: try again in a few seconds, and see /ready"
            ) from None
        try:
            work = functools.partial(call, *args, **named)
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._places.release()


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
