"""The serving loop: one thread that admits, steps the engine and tells listeners. Knows no HTTP.

Everything that touches the engine, the blocks or the adapters' slots happens on that thread; other
threads leave requests and cancellations in an inbox and wake it. Where the device works beside the
host, a step is planned and launched while the one before still runs; what that one sampled is told
after the launch. An answer found to have ended by then runs once more for nothing.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from adapters_store.store_errors import StoreError
from server.engine.sequence import Chunk, FinishReason, Sequence, StepOutput
from server.errors import DeadlineExceeded, Unavailable, VerandahError
from server.metrics import Metrics
from server.pulse import Pulse
from server.scheduler.admission import Admission, Slots
from server.scheduler.answer import Answer
from server.scheduler.engine_interface import StepFuture, StepRunner
from server.scheduler.intake import Handle, Intake
from server.scheduler.policy import Blocks, plan_step
from server.scheduler.request import Generation, Listener, LoopStats, PlainToken, TextDelta
from server.scheduler.stop_strings import Decoder
from server.scheduler.timing import StepMetrics

log = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.25  # how late a deadline may be noticed while nothing runs


@dataclass(frozen=True)
class Limits:
    """What the loop may hold at once."""

    max_rows: int
    max_step_tokens: int
    max_waiting: int
    max_context: int


class ServingLoop:
    """Continuous batching: answers join and leave between any two steps.

    Attributes:
        on_told: called on the loop's thread when listeners may have been told, once a step.

    Args:
        pulse: told how the answers fare.
        within: what the loop's thread enters, and works in.
        works: whether the engine can go on; asked after a step that failed.
        lost: called when it cannot, after the loop has ended and everybody was told.
    """

    def __init__(
        self,
        engine: StepRunner,
        slots: Slots,
        blocks: Blocks,
        new_decoder: Callable[[], Decoder],
        *,
        eos: frozenset[int],
        limits: Limits,
        metrics: Metrics,
        pulse: Pulse | None = None,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
        works: Callable[[], bool] = lambda: True,
        lost: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._blocks = blocks
        self._eos = eos
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self.max_context = min(limits.max_context, blocks.num_total * blocks.block_tokens)
        self.max_answers = limits.max_waiting + limits.max_rows  # that run or wait at once
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._intake = Intake(
            new_decoder,
            self._wake.set,
            capacity=self.max_answers,
            max_context=self.max_context,
            clock=clock,
        )
        self._admission = Admission(
            slots, blocks, max_rows=limits.max_rows, metrics=metrics, clock=clock
        )
        self._answers: dict[Sequence, Answer] = {}  # all that have not ended
        self._running: dict[Sequence, Answer] = {}  # oldest admission first
        self._in_air: deque[tuple[StepFuture, Seq[Chunk]]] = deque()
        self._next_deadline = math.inf  # at the latest the first of all that have not ended
        self._pulse = pulse
        self._within = within
        self._works, self._lost = works, lost
        self._working = True
        self._unfreed: tuple[object, ...] = ()
        self._beat = StepMetrics(metrics, pulse)
        self.on_told: Callable[[], None] = _nothing
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # Called from any thread.

    def start(self) -> None:
        """Start the thread. A loop runs once: after `stop`, build another."""
        self._thread.start()
        self._intake.open = True

    def stop(self, drain_timeout_s: float) -> None:
        """Refuse new requests, let running ones finish until the timeout, cancel the rest."""
        self._intake.close()
        end = time.monotonic() + drain_timeout_s
        while self._intake.queued and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.02)
        self._stop.set()
        self.wake()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """True while requests are accepted and the thread runs."""
        return self._intake.open and self._thread.is_alive()

    def wake(self) -> None:
        """Look again now: an adapter was loaded, say."""
        self._wake.set()

    def submit(self, request: Generation, listener: Listener) -> Handle:
        """Queue the `n` answers of a request; `listener` hears of each from the engine's thread.

        Raises:
            InvalidRequest: the prompt is empty.
            ContextLengthExceeded: prompt plus `max_tokens` can never fit.
            QueueFull: too many answers wait; says when to try again.
            Unavailable: the loop is not running or is draining.
        """
        return self._intake.submit(request, listener)

    def cancel(self, handle: Handle) -> None:
        """Stop a request's answers; their memory is free before the next step."""
        self._intake.cancel(handle)

    def stats(self) -> LoopStats:
        """A snapshot; numbers may be one step old."""
        running = list(self._running.values())
        names = Counter(str(answer.adapter or "base") for answer in running)
        total = self._blocks.num_total
        return LoopStats(
            running=len(running),
            waiting=max(self._intake.queued - len(running), 0),
            kv_blocks_used=total - self._blocks.num_free,
            kv_blocks_total=total,
            by_adapter_running=dict(names),
        )

    # Called from the loop's own thread.

    def _run(self) -> None:
        try:
            with self._within():
                while self._working and not self._stop.is_set():
                    self._turn()
        finally:  # a fault of the loop itself must not leave listeners waiting for ever
            try:
                self._end_all()
            finally:
                if not self._working:
                    self._lost()

    def _end_all(self) -> None:
        self._intake.close()
        self._take_inbox()
        error = Unavailable("the engine has stopped; try again when the server is back")
        for answer in [*self._answers.values()]:
            self._end(answer, FinishReason.CANCELLED, error)
        self.on_told()

    def _turn(self) -> None:
        self._take_inbox()
        self._drop_late()
        self._admit()
        if self._pulse is not None:
            self._pulse.running = len(self._running)
        launched = self._launch()
        due = bool(self._in_air) and not (launched and len(self._in_air) <= self._engine.ahead)
        if due:
            self._collect()
        self.on_told()
        if not due and not self._running:
            self._wake.wait(_IDLE_WAIT_S)
            self._wake.clear()

    def _take_inbox(self) -> None:
        for answer in self._intake.take_submitted():
            self._answers[answer.sequence] = answer
            self._next_deadline = min(self._next_deadline, answer.times.deadline)
            self._admission.take(answer)
        for answer in self._intake.take_cancelled():
            self._end(answer, FinishReason.CANCELLED)

    def _drop_late(self) -> None:
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
            self._end(answer, FinishReason.DEADLINE, error)
        deadlines = (answer.times.deadline for answer in self._answers.values())
        self._next_deadline = min(deadlines, default=math.inf)

    def _admit(self) -> None:
        for answer in self._admission.admit(self._running.values(), self._refuse):
            self._running[answer.sequence] = answer

    def _refuse(self, answer: Answer, error: Exception) -> None:
        if isinstance(error, (VerandahError, StoreError)):
            self._end(answer, FinishReason.ERROR, error)
        else:
            log.error("adapter %s found no slot", answer.adapter, exc_info=error)
            self._fail([answer], error)

    def _launch(self) -> bool:
        """Plan a step and start it; False when there was none to start, or it failed."""
        ready = [sequence for sequence in self._running if sequence.wants_steps]
        plan = plan_step(ready, self._blocks, self._limits.max_step_tokens)
        for sequence in plan.preempted:
            self._admission.put_back(self._running.pop(sequence))
            self._metrics.num_preemptions.inc()
        if not plan.chunks:
            return False
        try:
            flight = self._engine.launch(plan.chunks)
        except Exception as error:  # whatever a kernel may raise: the loop must outlive it
            self._fail_steps(error, plan.chunks)
            return False
        self._in_air.append((flight, plan.chunks))
        return True

    def _collect(self) -> None:
        """Wait for the oldest step in the air and tell what it gave."""
        flight, chunks = self._in_air.popleft()
        try:
            outputs = flight.outputs()
        except Exception as error:
            self._fail_steps(error, chunks, flight)
            return
        now, answers = self._clock(), self._answers
        for output in outputs:
            answer = answers.get(output.sequence)
            if answer is not None:  # else it ended while the step ran
                self._deliver(answer, output, now)
        self._metrics.iteration_tokens.observe(sum(length for _, length in chunks))
        self._beat.end()

    def _fail_steps(
        self, error: Exception, chunks: Seq[Chunk], flight: StepFuture | None = None
    ) -> None:
        """A step failed: nobody knows what it wrote, nor what a step that reads that would say.

        So all that run end, and with them what a step in the air had run and was pre-empted since.
        """
        log.error("a step of %d chunks failed", len(chunks), exc_info=error)
        self._working = self._works()
        if not self._working:
            log.critical("the engine's device has failed; the engine stops")
            # torch aborts the process when it frees an event or pinned memory of a lost device, and
            # the error's traceback holds some too. So all of it is kept until the process ends.
            self._unfreed = (error, flight, *self._in_air)
        begun = dict.fromkeys(self._running)
        for ran in (chunks, *(ran for _, ran in self._in_air)):
            begun |= dict.fromkeys(sequence for sequence, _ in ran)
        self._in_air.clear()
        self._fail([self._answers[it] for it in begun if it in self._answers], error)
        self._blocks.forget()

    def _fail(self, answers: Iterable[Answer], error: Exception) -> None:
        reason = Unavailable(f"the engine failed ({type(error).__name__}); try again")
        for answer in answers:
            self._end(answer, FinishReason.ERROR, reason)

    def _deliver(self, answer: Answer, output: StepOutput, now: float) -> None:
        if output.failure is not None:
            self._end(answer, FinishReason.ERROR, Unavailable(output.failure))
            return
        try:
            news = answer.take(output, self._eos)
        except Exception as error:  # a tokenizer's fault must not stop the others' answers
            log.exception("the text of %s failed", answer.request.request_id)
            self._fail([answer], error)
            return
        if news is None:
            return
        answer.times.token(now, self._beat)
        if isinstance(news, TextDelta) and news.finish is not None:
            self._end(answer, news.finish, delta=news)
        else:
            self._tell(answer, news)

    def _tell(self, answer: Answer, news: TextDelta | PlainToken) -> None:
        try:
            if isinstance(news, TextDelta):
                answer.listener(news)
            else:
                answer.taker(*news)
        except Exception:  # a listener's fault must not stop the others' answers
            log.exception("the listener of %s failed", answer.request.request_id)
            self._intake.cancel(Handle((answer,)))

    def _end(
        self,
        answer: Answer,
        reason: FinishReason,
        error: Exception | None = None,
        *,
        delta: TextDelta | None = None,
    ) -> None:
        """Give back all that the answer holds and tell its listener; twice does nothing."""
        if self._answers.pop(answer.sequence, None) is None:
            return
        if self._running.pop(answer.sequence, None) is None:
            self._admission.waiting.remove(answer)
        answer.sequence.finish = reason
        self._admission.leave(answer)
        now = self._clock()
        self._intake.ended(now)
        answer.times.end(answer.sequence, now, self._metrics)
        self._tell(answer, delta or TextDelta(answer.index, finish=reason, error=error))


def _nothing() -> None:
    """Nobody asked to be called."""
