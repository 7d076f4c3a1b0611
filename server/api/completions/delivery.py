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
from server.scheduler.request import Generation, TextDelta, TokenSink

_EARLY_ENDS = (FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ERROR)
_GRACE_S = 10.0  # beyond a request's own deadline, which the engine keeps
_CHUNKS_PER_S = 8000  # written to streams at most, all together; each costs a system call
_SHORTEST_PAUSE_S = 0.001  # timers are no finer

Updates = list[str | TextDelta]
"""The updates of one answer, in order; a text stands for a plain token."""


class ClientGone(Exception):
    """The client closed its connection; there is nobody left to answer."""


class ChoiceUpdate(NamedTuple):
    """All updates of one answer since the last, as one.

    `choice` is the answer's index among all of the request's. `num_tokens` counts the tokens:
    `delta.tokens` lacks the plain ones.
    """

    choice: int
    delta: TextDelta
    num_tokens: int


def merged(choice: int, updates: Updates) -> ChoiceUpdate:
    """The updates of an answer, at least one, as one delta."""
    try:
        return ChoiceUpdate(choice, TextDelta(0, "".join(updates)), len(updates))  # type: ignore[arg-type]
    except TypeError:  # not texts alone, which is rare
        deltas = [each for each in updates if isinstance(each, TextDelta)]
    last = deltas[-1]
    scores = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None)
    delta = TextDelta(
        last.index,
        "".join([each.text if isinstance(each, TextDelta) else each for each in updates]),
        tuple([token for delta in deltas for token in delta.tokens]),
        next(scores, None),
        last.finish,
        last.stop_reason,
        last.cached_tokens,
        last.error,
    )
    return ChoiceUpdate(choice, delta, len(delta.tokens) + len(updates) - len(deltas))


class StreamWaker:
    """Wakes the streams of one event loop when they have updates; called from any thread.

    A step of the engine brings an update to every stream, and waking the event loop from another
    thread costs more than writing a token. So a step wakes it once. All streams are then looked at
    together, and with many of them no more often than `_CHUNKS_PER_S` allows: a chunk then has
    several tokens. Urgent updates do not wait for that.
    """

    def __init__(self) -> None:
        self.streams: set[Answers] = set()  # those open; changed on the event loop alone
        self.event_loop: asyncio.AbstractEventLoop | None = None
        self._urgent: deque[Answers] = deque()
        self._urgent_scheduled = self._all_scheduled = False  # calls on the event loop
        self._not_before = 0.0

    def add_urgent(self, answers: "Answers") -> None:
        """These answers have an update that waits only for the next `flush`."""
        self._urgent.append(answers)

    def flush(self) -> None:
        """Wake the event loop: any of the streams may have updates."""
        if self._urgent:
            if not self._urgent_scheduled:
                self._urgent_scheduled = True
                self._call(self._look_at_urgent)
        elif self.streams and not self._all_scheduled:
            self._all_scheduled = True
            self._call(self._look_after_pause)

    def _call(self, function: Callable[[], None]) -> None:
        assert self.event_loop is not None, "no answers were opened on an event loop"
        with contextlib.suppress(RuntimeError):  # the event loop is closed: no stream is left
            self.event_loop.call_soon_threadsafe(function)

    def _look_at_urgent(self) -> None:
        self._urgent_scheduled = False  # before looking: a later `flush` schedules another call
        while self._urgent:
            self._urgent.popleft().wake_if_updated()
        if self.streams and not self._all_scheduled:
            self._all_scheduled = True
            self._look_after_pause()

    def _look_after_pause(self) -> None:
        assert self.event_loop is not None
        pause = self._not_before - self.event_loop.time()
        if pause > 0:
            self.event_loop.call_later(pause, self._look_at_all)
        else:
            self._look_at_all()

    def _look_at_all(self) -> None:
        assert self.event_loop is not None
        self._all_scheduled = False  # before looking
        for stream in self.streams:
            stream.wake_if_updated()
        pause = len(self.streams) / _CHUNKS_PER_S
        if pause >= _SHORTEST_PAUSE_S:
            self._not_before = self.event_loop.time() + pause


class Answers:
    """The answers to one HTTP request; its maker must `close` it.

    The first update and the ends wake the reader at once, the rest when `StreamWaker` allows it.

    Args:
        receive: the request's, whose body was read; it now tells when the client goes away.
        ends_only: wake the reader only when an answer ends: it sends all of them as one document.
    """

    def __init__(
        self,
        engine: Engine,
        waker: StreamWaker,
        receive: Receive,
        *,
        ends_only: bool,
        timeout_s: float,
    ) -> None:
        self._engine = engine
        self._waker = waker
        self._ends_only = ends_only
        self._event_loop = waker.event_loop = asyncio.get_running_loop()
        self._late = self._gone = False
        # One for all the answer: a timer for each token costs more than the token's event.
        self._timer = self._event_loop.call_later(timeout_s + _GRACE_S, self._give_up)
        self._waiter: asyncio.Future[None] | None = None
        self._watch = self._event_loop.create_task(self._until_gone(receive))
        if not ends_only:
            waker.streams.add(self)
        self._updates: list[Updates] = []  # of each choice
        self._failure: Exception | None = None
        self._handles: list[Handle] = []
        self._open = 0

    def submit(self, generation: Generation) -> None:
        """Submit one prompt's generation. Raises what `Engine.submit` raises."""
        updates: list[Updates] = [[] for _ in range(generation.n)]
        listener = AnswerListener(self, self._waker, updates, self._ends_only)
        self._handles.append(self._engine.submit(generation, listener))
        self._updates += updates
        self._open += generation.n

    @property
    def complete(self) -> bool:
        """True when every answer's end has been returned by `next`."""
        return self._open == 0

    async def next(self) -> list[ChoiceUpdate]:
        """Wait for updates: of each answer at most one, and at least one in all.

        Raises:
            Exception: an answer ended with it instead of its last token.
            Unavailable: the engine sent nothing until long after the deadline.
            ClientGone: there is nobody left to answer.
        """
        while not self._gone:
            if self._failure is not None:
                raise self._failure
            updates = self._take()
            if updates:
                return updates
            if self._late:
                raise Unavailable("the engine does not answer; look at /ready")
            if self._failure is None:
                self._waiter = self._event_loop.create_future()
                await self._waiter
        raise ClientGone

    @property
    def unread_tokens(self) -> int:
        """How many tokens came that `next` has not returned."""
        return sum(merged(0, new).num_tokens for it in self._updates if (new := it[:]))

    def close(self) -> None:
        """Cancel what still runs. Once only."""
        self._timer.cancel()
        self._watch.cancel()
        self._waker.streams.discard(self)
        if not self.complete:
            for handle in self._handles:
                self._engine.cancel(handle)

    def wake_if_updated(self) -> None:
        """Let `next` return if there are updates."""
        if any(self._updates):
            self._wake()

    def _take(self) -> list[ChoiceUpdate]:
        """All updates; sets `_failure` if an answer failed."""
        merged_updates: list[ChoiceUpdate] = []
        for choice, updates in enumerate(self._updates):
            new = updates[:]
            if not new:
                continue
            del updates[: len(new)]  # no more: the engine's thread may have added to it
            last = new[-1]
            if isinstance(last, TextDelta) and _ends(last) and not self._end(last):
                new.pop()
            if new:
                merged_updates.append(merged(choice, new))
        return merged_updates

    def _end(self, last: TextDelta) -> bool:
        """Whether an answer ended without a failure."""
        failure = _failure(last)
        self._failure = self._failure or failure
        self._open -= failure is None
        return failure is None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _give_up(self) -> None:
        self._late = True
        self._wake()

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._wake()


class AnswerListener:
    """Puts the updates of one prompt's answers in lists; see `server.scheduler.request.Listener`.

    Args:
        updates: a list for each answer.
    """

    def __init__(
        self, answers: Answers, waker: StreamWaker, updates: Seq[Updates], ends_only: bool
    ) -> None:
        self._answers = answers
        self._waker = waker
        self._updates = updates
        self._begun = ends_only
        self.flush = waker.flush

    def hear(self, update: TextDelta) -> None:
        self._updates[update.index].append(update)
        if not self._begun or _ends(update):
            self._begun = True
            self._waker.add_urgent(self._answers)

    def token_sink(self, index: int) -> TokenSink:
        append = self._updates[index].append
        return lambda _token_id, text: append(text)


def _ends(delta: TextDelta) -> bool:
    return delta.finish is not None or delta.error is not None


def _failure(delta: TextDelta) -> Exception | None:
    if delta.error is None and delta.finish in _EARLY_ENDS:
        return Unavailable(f"the answer ended early ({delta.finish}); try again")
    return delta.error
