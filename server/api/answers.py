"""Carries answers from the engine's thread to the event loop. Knows no JSON."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

from fastapi import Request

from server.api.seams import Engine
from server.engine.sequence import FinishReason
from server.errors import Unavailable
from server.scheduler.intake import Handle
from server.scheduler.request import Delta, Generation

T = TypeVar("T")

_EARLY_ENDS = (FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ERROR)
_GRACE_S = 10.0  # beyond a request's own deadline, which the engine keeps


class ClientGone(Exception):
    """The client closed its connection; there is nobody left to answer."""


class News(NamedTuple):
    """A delta, and which of the request's prompts it belongs to."""

    prompt: int
    delta: Delta


def joined(batch: Iterable[News]) -> list[News]:
    """The same news with one delta for each answer: how a reader who is behind catches up."""
    together: dict[tuple[int, int], list[Delta]] = {}
    for prompt, delta in batch:
        together.setdefault((prompt, delta.index), []).append(delta)
    return [News(prompt, _one(deltas)) for (prompt, _), deltas in together.items()]


def _one(deltas: list[Delta]) -> Delta:
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    scores = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None)
    return replace(
        last,
        text="".join([delta.text for delta in deltas]),
        tokens=tuple([token for delta in deltas for token in delta.tokens]),
        prompt_logprobs=next(scores, None),
    )


class Wakes:
    """Wakes those who wait on one event loop, from any thread: all that are due at once.

    A step of the engine brings news to every stream, and a wake-up of the event loop from another
    thread costs more than a token's event.
    """

    def __init__(self) -> None:
        self._due: deque[asyncio.Event] = deque()
        self._called = False

    def wake(self, event_loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set the event soon."""
        self._due.append(event)
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                event_loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        self._called = False  # before looking: what comes from here on calls again
        while self._due:
            self._due.popleft().set()


class Answers:
    """The answers to one HTTP request; whoever makes one must `close` it.

    With `ends_only` the event loop is woken only when an answer ends, which spares it a wake-up per
    token when nobody reads them one by one.
    """

    def __init__(self, engine: Engine, wakes: Wakes, *, ends_only: bool, timeout_s: float) -> None:
        self._engine = engine
        self._wakes = wakes
        self._ends_only = ends_only
        self._event_loop = asyncio.get_running_loop()
        self._late = False
        # One for all the answer: a timer for each token costs more than the token's event.
        self._timer = self._event_loop.call_later(timeout_s + _GRACE_S, self._give_up)
        self._arrived = asyncio.Event()
        self._waking = False
        self._news: deque[News] = deque()
        self._handles: list[Handle] = []
        self._open = 0

    def ask(self, generation: Generation) -> None:
        """Submit one prompt's generation. Raises what `Engine.submit` raises."""
        prompt = len(self._handles)
        self._handles.append(self._engine.submit(generation, partial(self._hear, prompt)))
        self._open += generation.n

    @property
    def complete(self) -> bool:
        """True when every answer's end has been returned by `next`."""
        return self._open == 0

    async def next(self) -> list[News]:
        """Wait for news; never empty.

        Raises:
            Exception: what an answer ended with instead of its last token.
            Unavailable: the engine said nothing until long after the deadline.
        """
        while not self._news:
            if self._late:
                raise Unavailable("the engine does not answer; look at /ready")
            await self._arrived.wait()
            self._arrived.clear()
            self._waking = False  # before looking: what arrives from here on wakes again
        batch: list[News] = []
        while self._news:
            failure = _failure(self._news[0].delta)
            if failure is not None and batch:
                break  # what came before it is told first
            if failure is not None:
                raise failure
            batch.append(self._news.popleft())
            self._open -= batch[-1].delta.finish is not None
        return batch

    def close(self) -> None:
        """Cancel what still runs."""
        self._timer.cancel()
        if not self.complete:
            for handle in self._handles:
                self._engine.cancel(handle)

    def _hear(self, prompt: int, delta: Delta) -> None:
        """On the engine's thread, or on that which hears its process."""
        self._news.append(News(prompt, delta))
        if self._waking or (self._ends_only and delta.finish is None and delta.error is None):
            return
        self._waking = True
        self._wakes.wake(self._event_loop, self._arrived)

    def _give_up(self) -> None:
        self._late = True
        self._arrived.set()


def _failure(delta: Delta) -> Exception | None:
    if delta.error is None and delta.finish in _EARLY_ENDS:
        return Unavailable(f"the answer ended early ({delta.finish}); try again")
    return delta.error


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, or drop it and raise ClientGone when the client goes away first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
