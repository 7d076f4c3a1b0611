"""The loop's inbox: requests and cancellations come in from any thread. Knows no engine."""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.engine.sequence import Sequence
from server.errors import Unavailable
from server.scheduler.answer import Answer
from server.scheduler.capacity import Capacity
from server.scheduler.request import Generation, Listener
from server.scheduler.stop_strings import AnswerText, NewDecoder
from server.scheduler.timing import AnswerTimes

_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class Handle:
    """A submitted request, for `cancel`."""

    answers: tuple[Answer, ...]


class Intake:
    """Checks what comes in, and keeps it until the loop takes it.

    Args:
        wake: called when something has come in.
        eos: the base's end tokens.
    """

    def __init__(
        self,
        new_decoder: NewDecoder,
        wake: Callable[[], None],
        capacity: Capacity,
        eos: frozenset[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_decoder = new_decoder
        self._wake = wake
        self._capacity = capacity
        self._eos = eos
        self._clock = clock
        self._lock = threading.Lock()
        self._submitted: deque[Answer] = deque()
        self._cancelled: deque[Answer] = deque()
        self._arrivals = 0
        self.open = False

    def submit(self, request: Generation, listener: Listener) -> Handle:
        """See `ServingLoop.submit`."""
        now = self._clock()
        with self._lock:
            if not self.open:
                raise Unavailable("the engine takes no requests now; try again in a moment")
            self._capacity.enter(request, now)
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
        """Refuse new requests from now on."""
        with self._lock:
            self.open = False

    def take_submitted(self) -> list[Answer]:
        return [self._submitted.popleft() for _ in range(len(self._submitted))]

    def take_cancelled(self) -> list[Answer]:
        return [self._cancelled.popleft() for _ in range(len(self._cancelled))]

    def _answer(self, request: Generation, index: int, listener: Listener, now: float) -> Answer:
        params = request.params
        self._arrivals += 1
        ends = frozenset() if params.ignore_eos else self._eos | request.turn_ends
        decoder = self._new_decoder(skip_special=params.skip_special_tokens)
        seed = secrets.randbits(64) if params.seed is None else (params.seed + index) & _MASK_64
        return Answer(
            request=request,
            index=index,
            arrival=self._arrivals,
            sequence=Sequence(
                self._arrivals,
                request.prompt,
                params,
                seed,
                ends | params.stop_token_ids,
                owner=request.owner,
                cache_salt=request.cache_salt,
            ),
            text=AnswerText(decoder, params.stop, include_stop=params.include_stop),
            listener=listener,
            token_sink=listener.token_sink(index),
            times=AnswerTimes(submitted=now, deadline=now + request.timeout_s),
        )
