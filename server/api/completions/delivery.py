"""Carries answers from the engine's thread to the event loop. Knows no JSON."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple

from starlette.types import Receive

from server.engine.sequence import FinishReason
from server.errors import Unavailable
from server.interfaces import Engine
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, Taker, TextDelta

_EARLY_ENDS = (FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ERROR)
_GRACE_S = 10.0  # beyond a request's own deadline, which the engine keeps
_PIECES_PER_S = 8000  # written to streams at most, all together; each costs a system call
_SHORTEST_PAUSE_S = 0.001  # a timer knows no shorter

Heard = list[str | TextDelta]
"""What was heard of one answer, in order; a text is that of a token that shows it and no more."""


class ClientGone(Exception):
    """The client closed its connection; there is nobody left to answer."""


class ChoiceUpdate(NamedTuple):
    """What one answer has to tell.

    `choice` is its place among all of the request's. `made` counts the tokens: `delta` does not
    have those that came as a text alone.
    """

    choice: int
    delta: TextDelta
    made: int


def joined(choice: int, heard: Heard) -> ChoiceUpdate:
    """All that was heard of an answer, which is something, as one delta."""
    try:
        return ChoiceUpdate(choice, TextDelta(0, "".join(heard)), len(heard))  # type: ignore[arg-type]
    except TypeError:  # not texts alone, which is rare
        deltas = [each for each in heard if isinstance(each, TextDelta)]
    last = deltas[-1]
    scores = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None)
    delta = TextDelta(
        last.index,
        "".join([each.text if isinstance(each, TextDelta) else each for each in heard]),
        tuple([token for delta in deltas for token in delta.tokens]),
        next(scores, None),
        last.finish,
        last.stop_reason,
        last.cached_tokens,
        last.error,
    )
    return ChoiceUpdate(choice, delta, len(delta.tokens) + len(heard) - len(deltas))


class Wakes:
    """Wakes those who wait on one event loop, from any thread.

    A step of the engine brings news to every stream, and a wake-up of the event loop from another
    thread costs more than a token's event: so all streams are looked at together, and with many of
    them no more often than `_PIECES_PER_S` allow. A stream then gets several tokens in one piece.
    """

    def __init__(self) -> None:
        self.streams: set[Answers] = set()  # those open; changed on the event loop alone
        self.event_loop: asyncio.AbstractEventLoop | None = None
        self._hurried: deque[Answers] = deque()
        self._hurrying = self._looking = False  # soon; called for on the event loop
        self._not_before = 0.0

    @property
    def pause_s(self) -> float:
        """How long the streams are left alone after they were looked at."""
        pause = len(self.streams) / _PIECES_PER_S
        return 0.0 if pause < _SHORTEST_PAUSE_S else pause

    def told(self) -> None:
        """Some streams may have news, which can wait."""
        if self.streams and not self._looking:
            self._looking = True
            self._call(self._pause)

    def hurry(self, answers: "Answers") -> None:
        """These have news that cannot wait."""
        self._hurried.append(answers)
        if not self._hurrying:
            self._hurrying = True
            self._call(self._rouse)

    def _call(self, wanted: Callable[[], None]) -> None:
        assert self.event_loop is not None, "nobody waits"
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.event_loop.call_soon_threadsafe(wanted)

    def _rouse(self) -> None:
        self._hurrying = False  # before looking: what comes from here on calls again
        while self._hurried:
            self._hurried.popleft().look()

    def _pause(self) -> None:
        assert self.event_loop is not None
        pause = self._not_before - self.event_loop.time()
        if pause > 0:
            self.event_loop.call_later(pause, self._look)
        else:
            self._look()

    def _look(self) -> None:
        assert self.event_loop is not None
        self._looking = False  # before looking
        for stream in self.streams:
            stream.look()
        self._not_before = self.event_loop.time() + self.pause_s


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
        self._event_loop = wakes.event_loop = asyncio.get_running_loop()
        self._late = self._gone = False
        # One for all the answer: a timer for each token costs more than the token's event.
        self._timer = self._event_loop.call_later(timeout_s + _GRACE_S, self._give_up)
        self._waiter: asyncio.Future[None] | None = None
        self._watch = self._event_loop.create_task(self._until_gone(receive))
        if not ends_only:
            wakes.streams.add(self)
        self._heard: list[Heard] = []  # of each choice
        self._failure: Exception | None = None
        self._handles: list[Handle] = []
        self._open = 0

    def ask(self, generation: Generation) -> None:
        """Submit one prompt's generation. Raises what `Engine.submit` raises."""
        heard: list[Heard] = [[] for _ in range(generation.n)]
        self._handles.append(
            self._engine.submit(generation, Ear(self, self._wakes, heard, self._ends_only))
        )
        self._heard += heard
        self._open += generation.n

    @property
    def complete(self) -> bool:
        """True when every answer's end has been returned by `next`."""
        return self._open == 0

    async def next(self) -> list[ChoiceUpdate]:
        """Wait for news: of each answer at most one, and at least one in all.

        Raises:
            Exception: what an answer ended with instead of its last token.
            Unavailable: the engine said nothing until long after the deadline.
            ClientGone: there is nobody left to answer.
        """
        while not self._gone:
            if self._failure is not None:
                raise self._failure
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
        self._wakes.streams.discard(self)
        if not self.complete:
            for handle in self._handles:
                self._engine.cancel(handle)

    def look(self) -> None:
        """Go on if there is news."""
        if any(self._heard):
            self._rouse()

    def _take(self) -> list[ChoiceUpdate]:
        """All that was heard; what an answer failed with comes to be `_failure`."""
        news: list[ChoiceUpdate] = []
        for choice, heard in enumerate(self._heard):
            new = heard[:]
            if not new:
                continue
            del heard[: len(new)]  # no more: the engine's thread may have added to it
            last = new[-1]
            if isinstance(last, TextDelta) and _ends(last) and not self._end(last):
                new.pop()
            if new:
                news.append(joined(choice, new))
        return news

    def _end(self, last: TextDelta) -> bool:
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

    def __init__(self, answers: Answers, wakes: Wakes, heard: Seq[Heard], ends_only: bool) -> None:
        self._answers = answers
        self._wakes = wakes
        self._heard = heard
        self._begun = self._ends_only = ends_only

    def __call__(self, delta: TextDelta) -> None:
        self._heard[delta.index].append(delta)
        self._tell(_ends(delta))

    def taker(self, index: int) -> Taker:
        """See `taker_of`."""

        def take(_token_id: int, text: str) -> None:
            self._heard[index].append(text)
            self._tell(False)

        return take

    def text_taker(self, index: int) -> Callable[[str], None]:
        """See `server.replicas.connection.Ear`."""
        return self._heard[index].append

    @property
    def told(self) -> Callable[[], None]:
        return self._wakes.told

    def _tell(self, ended: bool) -> None:
        if ended or not self._begun:
            self._begun = True
            self._wakes.hurry(self._answers)
        elif not self._ends_only:
            self._wakes.told()


def _ends(delta: TextDelta) -> bool:
    return delta.finish is not None or delta.error is not None


def _failure(delta: TextDelta) -> Exception | None:
    if delta.error is None and delta.finish in _EARLY_ENDS:
        return Unavailable(f"the answer ended early ({delta.finish}); try again")
    return delta.error
