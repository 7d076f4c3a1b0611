"""Carries answers from the engine's thread to the event loop. Knows no JSON."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from enum import IntEnum
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

Heard = list[str | Delta]
"""What was heard of one answer, in order; a text is that of a token that shows it and no more."""


class ClientGone(Exception):
    """The client closed its connection; there is nobody left to answer."""


class News(NamedTuple):
    """What one answer has to tell.

    `choice` is its place among all of the request's. `made` counts the tokens: `delta` does not
    have those that came as a text alone.
    """

    choice: int
    delta: Delta
    made: int


def joined(choice: int, heard: Heard) -> News:
    """All that was heard of an answer, which is something, as one delta."""
    try:
        return News(choice, Delta(0, "".join(heard)), len(heard))  # type: ignore[arg-type]
    except TypeError:  # not texts alone, which is rare
        deltas = [each for each in heard if isinstance(each, Delta)]
    last = deltas[-1]
    scores = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None)
    delta = Delta(
        last.index,
        "".join([each.text if isinstance(each, Delta) else each for each in heard]),
        tuple([token for delta in deltas for token in delta.tokens]),
        next(scores, None),
        last.finish,
        last.stop_reason,
        last.cached_tokens,
        last.error,
    )
    return News(choice, delta, len(delta.tokens) + len(heard) - len(deltas))


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
        self._due: dict[Waking, deque[Callable[[], None]]] = {how: deque() for how in Waking}
        self._called: dict[Waking, bool] = dict.fromkeys(Waking, False)
        self._not_before = 0.0

    @property
    def pause_s(self) -> float:
        """How long those who wait `WITH_THE_OTHERS` are left alone after they were woken."""
        pause = self.streams / _PIECES_PER_S
        return 0.0 if pause < _SHORTEST_PAUSE_S else pause

    def wake(
        self, event_loop: asyncio.AbstractEventLoop, rouse: Callable[[], None], how: Waking
    ) -> None:
        """Have `rouse` called on the event loop soon."""
        self._due[how].append(rouse)
        if not self._called[how]:
            self._called[how] = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                event_loop.call_soon_threadsafe(self._wake, event_loop, how)

    def _wake(self, event_loop: asyncio.AbstractEventLoop, how: Waking) -> None:
        pause = self._not_before - event_loop.time()
        if how is Waking.WITH_THE_OTHERS and pause > 0:
            event_loop.call_later(pause, self._rouse, event_loop, how)
        else:
            self._rouse(event_loop, how)

    def _rouse(self, event_loop: asyncio.AbstractEventLoop, how: Waking) -> None:
        self._called[how] = False  # before looking: what comes from here on calls again
        due = self._due[how]
        while due:
            due.popleft()()
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
        self._ends_only = self._begun = ends_only
        self._event_loop = asyncio.get_running_loop()
        self._late = self._gone = False
        # One for all the answer: a timer for each token costs more than the token's event.
        self._timer = self._event_loop.call_later(timeout_s + _GRACE_S, self._give_up)
        self._waiter: asyncio.Future[None] | None = None
        # Who listens for ends only is as one who will be woken with the others anyway.
        self._at_rest = self.waking = Waking.WITH_THE_OTHERS if ends_only else Waking.NOT
        self._watch = self._event_loop.create_task(self._until_gone(receive))
        self._wakes.streams += not ends_only
        self._heard: list[Heard] = []  # of each choice
        self._failure: Exception | None = None
        self._handles: list[Handle] = []
        self._open = 0

    def ask(self, generation: Generation) -> None:
        """Submit one prompt's generation. Raises what `Engine.submit` raises."""
        heard: list[Heard] = [[] for _ in range(generation.n)]
        self._handles.append(self._engine.submit(generation, Ear(self, heard)))
        self._heard += heard
        self._open += generation.n

    @property
    def complete(self) -> bool:
        """True when every answer's end has been returned by `next`."""
        return self._open == 0

    async def next(self) -> list[News]:
        """Wait for news: of each answer at most one, and at least one in all.

        Raises:
            Exception: what an answer ended with instead of its last token.
            Unavailable: the engine said nothing until long after the deadline.
            ClientGone: there is nobody left to answer.
        """
        while not self._gone:
            if self._failure is not None:
                raise self._failure
            self.waking = self._at_rest  # before looking: what comes from here on wakes again
            news = self._take()
            if news:
                return news
            if self._late:
                raise Unavailable("the engine does not answer; look at /ready")
            if self._failure is None:
                self._waiter = self._event_loop.create_future()
                await self._waiter
        raise ClientGone

    def close(self) -> None:
        """Cancel what still runs. Once only."""
        self._timer.cancel()
        self._watch.cancel()
        self._wakes.streams -= not self._ends_only
        if not self.complete:
            for handle in self._handles:
                self._engine.cancel(handle)

    def stir(self, how: Waking) -> None:
        """There is news. From any thread."""
        if how > self.waking:
            self.waking = how = how if self._begun else Waking.AT_ONCE
            self._begun = True
            self._wakes.wake(self._event_loop, self._rouse, how)

    def _take(self) -> list[News]:
        """All that was heard; what an answer failed with comes to be `_failure`."""
        news: list[News] = []
        for choice, heard in enumerate(self._heard):
            new = heard[:]
            if not new:
                continue
            del heard[: len(new)]  # no more: the engine's thread may have added to it
            last = new[-1]
            if isinstance(last, Delta) and _ends(last) and not self._end(last):
                new.pop()
            if new:
                news.append(joined(choice, new))
        return news

    def _end(self, last: Delta) -> bool:
        """Whether an answer ended as it should."""
        failure = _failure(last)
        self._failure = self._failure or failure
        self._open -= failure is None
        return failure is None

    def _rouse(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _give_up(self) -> None:
        self._late = True
        self._rouse()

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._rouse()


class Ear:
    """Hears the answers to one prompt, on the engine's thread or that which hears its process.

    Args:
        heard: where to put it, for each answer.
    """

    def __init__(self, answers: Answers, heard: Seq[Heard]) -> None:
        self._answers = answers
        self._heard = heard

    def __call__(self, delta: Delta) -> None:
        self._heard[delta.index].append(delta)
        self._answers.stir(Waking.AT_ONCE if _ends(delta) else Waking.WITH_THE_OTHERS)

    def taker(self, index: int) -> Callable[[int, str], None]:
        """What takes an answer's tokens that show their text and no more; see `Link`."""
        answers, append = self._answers, self._heard[index].append

        def take(_token_id: int, text: str) -> None:
            append(text)
            if not answers.waking:
                answers.stir(Waking.WITH_THE_OTHERS)

        return take


def _ends(delta: Delta) -> bool:
    return delta.finish is not None or delta.error is not None


def _failure(delta: Delta) -> Exception | None:
    if delta.error is None and delta.finish in _EARLY_ENDS:
        return Unavailable(f"the answer ended early ({delta.finish}); try again")
    return delta.error
