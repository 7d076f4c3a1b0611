"""Limits how many answers are under way at once, and how long each may be. Knows no engine."""

import threading
from collections import Counter, deque

from server.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from server.scheduler.request import Generation

_RECENT_S = 60.0


class Capacity:
    """Counts the answers that have come in and not ended. Thread-safe; `now` is in seconds.

    One owner cannot keep others out: when the queue is full, an owner may still fill an equal share
    of it, until there are twice as many answers as it is for.

    Args:
        max_answers: answers that may run and wait at once.
        max_context: tokens that prompt and answer may have together.
    """

    def __init__(self, *, max_answers: int, max_context: int) -> None:
        self.max_answers = max_answers
        self.max_context = max_context
        self._lock = threading.Lock()
        self._ends: deque[float] = deque(maxlen=32)
        self._by_owner: Counter[str] = Counter()
        self.queued = 0

    def enter(self, request: Generation, now: float) -> None:
        """Count the answers of a request in; each must `leave` once.

        Raises:
            InvalidRequest: the prompt is empty.
            ContextLengthExceeded: prompt plus `max_tokens` can never fit.
            QueueFull: too many answers wait; says when to try again.
        """
        self._check_length(request)
        with self._lock:
            self._check_queue(request, now)
            self.queued += request.n
            self._by_owner[request.owner] += request.n

    def leave(self, owner: str, now: float) -> None:
        """One answer of an owner has ended."""
        with self._lock:
            self.queued -= 1
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]
            self._ends.append(now)

    def _check_length(self, request: Generation) -> None:
        tokens, max_tokens = len(request.prompt), request.params.max_tokens
        prompt, length, context = request.prompt_param, request.length_param, self.max_context
        if not tokens:
            raise InvalidRequest(f"{prompt} has no tokens: send at least one", param=prompt)
        if tokens + min(max_tokens, 1) > context:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {context} tokens and {prompt} has "
                f"{tokens}, which leaves no room for an answer: shorten {prompt}",
                param=prompt,
            )
        if tokens + max_tokens > context:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {context} tokens and {prompt} takes "
                f"{tokens}: lower {length} from {max_tokens} to {context - tokens}",
                param=length,
            )

    def _check_queue(self, request: Generation, now: float) -> None:
        own, more = self._by_owner.get(request.owner, 0), request.n
        if self.queued + more <= self.max_answers:
            return
        others = len(self._by_owner) - bool(own)
        fair = others > 0 and own + more <= self.max_answers // (others + 1)
        if fair and self.queued + more <= 2 * self.max_answers:
            return
        recent = [moment for moment in self._ends if now - moment < _RECENT_S]
        s_per_answer = (now - recent[0]) / len(recent) if len(recent) > 1 else 0.0
        raise QueueFull(
            f"{self.queued} answers run or wait and {more} more would pass the limit of "
            f"{self.max_answers}; try again later",
            retry_after_s=min(max(more * s_per_answer, 1.0), _RECENT_S),
        )
