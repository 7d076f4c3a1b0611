"""The answers that have not ended: their listeners' updates, and how they end. Knows no steps."""

import logging
import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

from server.engine.sequence import FinishReason, Sequence, StepOutput
from server.errors import (
    AdapterNotFinite,
    DeadlineExceeded,
    LogitsNotFinite,
    Unavailable,
    VerandahError,
)
from server.metrics import Metrics
from server.pulse import Pulse
from server.scheduler.admission import Admission
from server.scheduler.answer import Answer
from server.scheduler.capacity import Capacity
from server.scheduler.intake import Handle, Intake
from server.scheduler.request import PlainToken, TextDelta
from server.scheduler.timing import StepMetrics

log = logging.getLogger(__name__)


class OpenAnswers:
    """From submission to the last update. Used by the loop's thread alone.

    Attributes:
        running: those in the batch, by sequence; the oldest admission first.
    """

    def __init__(
        self,
        intake: Intake,
        capacity: Capacity,
        admission: Admission,
        metrics: Metrics,
        pulse: Pulse | None,
        clock: Callable[[], float],
    ) -> None:
        self.running: dict[Sequence, Answer] = {}
        self._answers: dict[Sequence, Answer] = {}
        self._intake = intake
        self._capacity = capacity
        self._admission = admission
        self._metrics = metrics
        self._step_metrics = StepMetrics(metrics, pulse)
        self._clock = clock
        self._next_deadline = math.inf  # the first deadline of all is this or later
        self._flushes: set[Callable[[], None]] = set()

    def add(self, answer: Answer) -> None:
        """Open a new answer; it waits for admission."""
        self._answers[answer.sequence] = answer
        self._next_deadline = min(self._next_deadline, answer.times.deadline)
        self._flushes.add(answer.listener.flush)
        self._admission.add(answer)

    def deliver(self, outputs: Seq[StepOutput]) -> None:
        """Tell the listeners what a step gave their answers."""
        now, answers = self._clock(), self._answers
        for output in outputs:
            answer = answers.get(output.sequence)
            if answer is not None:  # else it ended while the step ran
                self._deliver(answer, output, now)
        self._step_metrics.end()

    def flush(self) -> None:
        """Let the listeners pass on what they heard."""
        for flush in self._flushes:
            flush()

    def end_late(self) -> None:
        """End the answers whose deadline has passed."""
        now = self._clock()
        if now <= self._next_deadline:
            return
        late = [answer for answer in self._answers.values() if now > answer.times.deadline]
        for answer in late:
            limit = answer.request.timeout_s
            error = DeadlineExceeded(
                f"the answer was not complete after {limit:g} s; ask for fewer tokens, or try "
                "again when the server is less busy"
            )
            self.end(answer, FinishReason.DEADLINE, error)
        deadlines = (answer.times.deadline for answer in self._answers.values())
        self._next_deadline = min(deadlines, default=math.inf)

    def end_all(self, error: Exception) -> None:
        """Cancel every answer."""
        for answer in [*self._answers.values()]:
            self.end(answer, FinishReason.CANCELLED, error)

    def fail(self, sequences: Iterable[Sequence], error: Exception) -> None:
        """The engine failed with `error`: end the answers of these sequences."""
        reason = Unavailable(f"the engine failed ({type(error).__name__}); try again")
        for sequence in sequences:
            if sequence in self._answers:
                self.end(self._answers[sequence], FinishReason.ERROR, reason)

    def end(
        self,
        answer: Answer,
        reason: FinishReason,
        error: Exception | None = None,
        *,
        delta: TextDelta | None = None,
    ) -> None:
        """Release all that the answer holds and tell its listener; twice does nothing."""
        if self._answers.pop(answer.sequence, None) is None:
            return
        self.running.pop(answer.sequence, None)
        answer.sequence.finish = reason
        self._admission.release(answer)
        now = self._clock()
        self._capacity.leave(answer.owner, now)
        answer.times.end(answer.sequence, now, self._metrics)
        self._tell(answer, delta or TextDelta(answer.index, finish=reason, error=error))

    def _deliver(self, answer: Answer, output: StepOutput, now: float) -> None:
        if output.failure is not None:
            self.end(answer, FinishReason.ERROR, _not_finite(answer, output.failure))
            return
        try:
            update = answer.take(output)
        except Exception as error:  # a tokenizer's fault must not stop the others' answers
            log.exception("request %s: its tokens could not be decoded", answer.request.request_id)
            self.fail([answer.sequence], error)
            return
        if update is None:
            return
        answer.times.token(now, self._step_metrics)
        if isinstance(update, TextDelta) and update.finish is not None:
            self.end(answer, update.finish, delta=update)
        else:
            self._tell(answer, update)

    def _tell(self, answer: Answer, update: TextDelta | PlainToken) -> None:
        try:
            if isinstance(update, TextDelta):
                answer.listener.hear(update)
            else:
                answer.token_sink(*update)
        except Exception:  # a listener's fault must not stop the others' answers
            log.exception("request %s is cancelled: its listener failed", answer.request.request_id)
            self._intake.cancel(Handle((answer,)))


def _not_finite(answer: Answer, failure: str) -> VerandahError:
    if answer.adapter is None:
        return LogitsNotFinite(f"base model: {failure}; serve it with --dtype float32 or bfloat16")
    return AdapterNotFinite(
        f"adapter {answer.adapter}: {failure}; train it again with a lower learning rate, or serve "
        "with --dtype float32 or bfloat16"
    )
