"""Carries answers from the engine's thread to the event loop. Knows no JSON."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from functools import partial
from typing import NamedTuple

from starlette.types import Receive

from server.api.seams import Engine
from server.engine.sequence import FinishReason
from server.errors import Unavailable
from server.scheduler.intake import Handle
from server.scheduler.request import Delta, Generation

_EARLY_ENDS = (FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ERROR)
_GRACE_S = 10.0  # beyond a request's own deadline, which the engine keeps
_PIECES_PER_S = 8000  # written to streams at most, all together; each costs a system call
_SHORTEST_PAUSE_S = 0.001  # a timer knows no shorter


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
    return Delta(
        last.index,
        "".join([delta.text for delta in deltas]),
        tuple([token for delta in deltas for token in delta.tokens]),
        next(scores, None),
        last.finish,
        last.stop_reason,
        last.cached_tokens,
        last.error,
    )


class Waking(IntEnum):
    """How soon somebody is to be woken."""

    NOT = 0
    WITH_THE_OTHERS = 1
    AT_ONCE = 2


class Wakes:
    """Wakes those who wait on one event loop, from any thread: all that are due at once.

    A step of the engine brings news to every stream, and a wake-up of the event loop from another
    thread costs more than a token's event. With many streams open, `WITH_THE_OTHERS` comes no more
    often than `_PIECES_PER_S` allow: a stream then gets several tokens in one piece.
    """

    def __init__(self) -> None:
        self.streams = 0  # open ones; counted on the event loop
        self._due: dict[Waking, deque[asyncio.Event]] = {how: deque() for how in Waking}
        self._called: dict[Waking, bool] = dict.fromkeys(Waking, False)
        self._not_before = 0.0

    @property
    def pause_s(self) -> float:
        """How long those who wait `WITH_THE_OTHERS` are left alone after they were woken."""
        pause = self.streams / _PIECES_PER_S
        return 0.0 if pause < _SHORTEST_PAUSE_S else pause

    def wake(
        self, event_loop: asyncio.AbstractEventLoop, event: asyncio.Event, how: Waking
    ) -> None:
        """Set the event soon."""
        self._due[how].append(event)
        if not self._called[how]:
            self._called[how] = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                event_loop.call_soon_threadsafe(self._wake, event_loop, how)

    def _wake(self, event_loop: asyncio.AbstractEventLoop, how: Waking) -> None:
        pause = self._not_before - event_loop.time()
        if how is Waking.WITH_THE_OTHERS and pause > 0:
            event_loop.call_later(pause, self._set, event_loop, how)
        else:
            self._set(event_loop, how)

    def _set(self, event_loop: asyncio.AbstractEventLoop, how: Waking) -> None:
        self._called[how] = False  # before looking: what comes from here on calls again
        due = self._due[how]
        while due:
            due.popleft().set()
        if how is Waking.WITH_THE_OTHERS:
            self._not_before = event_loop.time() + self.pause_s


class Answers:
    """The answers to one HTTP request; whoever makes one must `close` it.

    Its first news and its ends are told at once, the rest as `Wakes` has time. `receive` is the
    request's, whose body was read: it tells when the client goes away. With `ends_only` the event
    loop is woken only when an answer ends, which spares it a wake-up per token when nobody reads
    them one by one.
    """

    def __init__(
        self, engine: Engine, wakes: Wakes, receive: Receive, *, ends_only: bool, timeout_s: float
    ) -> None:
        self._engine = engine
        self._wakes = wakes
        self._ends_only = ends_only
        self._event_loop = asyncio.get_running_loop()
        self._late = self._gone = self._begun = False
        # One for all the answer: a timer for each token costs more than the token's event.
        self._timer = self._event_loop.call_later(timeout_s + _GRACE_S, self._give_up)
        self._arrived = asyncio.Event()
        self._waking = Waking.NOT
        self._watch = self._event_loop.create_task(self._until_gone(receive))
        self._wakes.streams += not ends_only
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
            ClientGone: there is nobody left to answer.
        """
        while self._gone or not self._news:
            if self._gone:
                raise ClientGone
            if self._late:
                raise Unavailable("the engine does not answer; look at /ready")
            await self._arrived.wait()
            self._arrived.clear()
            self._waking = Waking.NOT  # before looking: what arrives from here on wakes again
        batch: list[News] = []
        while self._news:
            delta = self._news[0].delta
            if delta.finish is not None or delta.error is not None:
                failure = _failure(delta)
                if failure is not None and batch:
                    break  # what came before it is told first
                if failure is not None:
                    raise failure
                self._open -= 1
            batch.append(self._news.popleft())
        return batch

    def close(self) -> None:
        """Cancel what still runs. Once only."""
        self._timer.cancel()
        self._watch.cancel()
        self._wakes.streams -= not self._ends_only
        if not self.complete:
            for handle in self._handles:
                self._engine.cancel(handle)

    def _hear(self, prompt: int, delta: Delta) -> None:
        """On the engine's thread, or on that which hears its process."""
        self._news.append(News(prompt, delta))
        if delta.finish is not None or delta.error is not None:
            how = Waking.AT_ONCE
        elif self._ends_only or self._waking:
            return
        else:
            how = Waking.WITH_THE_OTHERS if self._begun else Waking.AT_ONCE
            self._begun = True
        if how > self._waking:
            self._waking = how
            self._wakes.wake(self._event_loop, self._arrived, how)

    def _give_up(self) -> None:
        self._late = True
        self._arrived.set()

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._arrived.set()


def _failure(delta: Delta) -> Exception | None:
    if delta.error is None and delta.finish in _EARLY_ENDS:
        return Unavailable(f"the answer ended early ({delta.finish}); try again")
    return delta.error
