"""Where requests come in, from any thread: checks, counts, the way back out. Knows no engine."""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.engine.sequence import Sequence
from server.errors import ContextLengthExceeded, InvalidRequest, QueueFull, Unavailable
from server.scheduler.answer import Answer
from server.scheduler.request import Generation, Listener
from server.scheduler.text import AnswerText, Decoder
from server.scheduler.timing import Times

_MASK_64 = (1 << 64) - 1
_RECENT_S = 60.0


@dataclass(frozen=True)
class Handle:
    """A submitted request, for `cancel`."""

    answers: tuple[Answer, ...]


class Intake:
    """The inbox of the serving loop. `queued` counts the answers that have come in and not ended.

    Args:
        capacity: answers that may be queued at once, running ones included.
        max_context: tokens that prompt and answer may have together.
    """

    def __init__(
        self,
        new_decoder: Callable[[], Decoder],
        wake: Callable[[], None],
        *,
        capacity: int,
        max_context: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_decoder = new_decoder
        self._wake = wake
        self._capacity = capacity
        self._max_context = max_context
        self._clock = clock
        self._lock = threading.Lock()
        self._submitted: deque[Answer] = deque()
        self._cancelled: deque[Answer] = deque()
        self._ends: deque[float] = deque(maxlen=32)
        self._arrivals = 0
        self.queued = 0
        self.open = False

    def submit(self, request: Generation, listener: Listener) -> Handle:
        """See `ServingLoop.submit`."""
        self._check_length(request)
        now = self._clock()
        with self._lock:
            if not self.open:
                raise Unavailable("the engine takes no requests now; try again in a moment")
            self._check_room(request.n, now)
            self.queued += request.n
            answers = tuple(
                self._answer(request, index, listener, now) for index in range(request.n)
            )
            self._submitted.extend(answers)
        self._wake()
        return Handle(answers)

    def cancel(self, handle: Handle) -> None:
        """See `ServingLoop.cancel`."""
        self._cancelled.extend(handle.answers)
        self._wake()

    def close(self) -> None:
        """Refuse what comes from now on."""
        with self._lock:
            self.open = False

    def ended(self, now: float) -> None:
        """One answer has ended."""
        with self._lock:
            self.queued -= 1
            self._ends.append(now)

    def take_submitted(self) -> list[Answer]:
        return [self._submitted.popleft() for _ in range(len(self._submitted))]

    def take_cancelled(self) -> list[Answer]:
        return [self._cancelled.popleft() for _ in range(len(self._cancelled))]

    def _check_length(self, request: Generation) -> None:
        if not request.prompt:
            raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
        prompt, wanted = len(request.prompt), request.params.max_tokens
        if prompt + wanted > self._max_context:
            raise ContextLengthExceeded(
                f"{prompt} prompt tokens plus max_tokens={wanted} are {prompt + wanted}, above the "
                f"context of {self._max_context}: shorten the prompt or lower max_tokens",
                param="messages",
            )

    def _check_room(self, wanted: int, now: float) -> None:
        if self.queued + wanted <= self._capacity:
            return
        recent = [moment for moment in self._ends if now - moment < _RECENT_S]
        pace = (now - recent[0]) / len(recent) if len(recent) > 1 else 0.0
        raise QueueFull(
            f"{self.queued} answers run or wait and {wanted} more would pass the limit of "
            f"{self._capacity}; try again later",
            retry_after_s=min(max(wanted * pace, 1.0), _RECENT_S),
        )

    def _answer(self, request: Generation, index: int, listener: Listener, now: float) -> Answer:
        params = request.params
        self._arrivals += 1
        seed = secrets.randbits(64) if params.seed is None else (params.seed + index) & _MASK_64
        return Answer(
            request=request,
            index=index,
            arrival=self._arrivals,
            sequence=Sequence(self._arrivals, request.prompt, params, seed),
            text=AnswerText(self._new_decoder(), params.stop),
            listener=listener,
            times=Times(submitted=now, deadline=now + request.timeout_s),
        )
