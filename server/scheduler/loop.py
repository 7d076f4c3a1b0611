"""The serving loop: one thread that admits, steps the engine and tells listeners. Knows no HTTP.

Everything that touches the engine, the blocks or the adapters' slots happens on that thread; other
threads leave requests and cancellations in an inbox and wake it. Where the device works beside the
host, a step is planned and launched while the one before still runs; the outputs of that one are
delivered after the launch. An answer that then turns out to have ended runs once more for nothing.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from adapters_store.store_errors import StoreError
from server.engine.blocks import BlockPool
from server.engine.sequence import Chunk, FinishReason, StepOutput
from server.errors import Unavailable, VerandahError
from server.loop_progress import StepProgress
from server.metrics import Metrics
from server.pulse import Pulse
from server.scheduler.admission import Admission, Slots
from server.scheduler.answer import Answer
from server.scheduler.capacity import Capacity
from server.scheduler.intake import Handle, Intake
from server.scheduler.open_answers import OpenAnswers
from server.scheduler.policy import plan_step
from server.scheduler.request import DeviceMemory, Generation, Listener, LoopStats
from server.scheduler.stop_strings import NewDecoder

log = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.25  # how late a deadline may be noticed while nothing runs


class StepFuture(Protocol):
    """A step that was launched: `server.engine.launched_step.LaunchedStep`."""

    def outputs(self) -> list[StepOutput]:
        """One output for each chunk; waits until the step has run."""
        ...


class StepRunner(Protocol):
    """The engine: `server.engine.runner.Runner`."""

    @property
    def ahead(self) -> int:
        """How many steps, 0 or 1, may be in flight while the next is planned and launched."""
        ...

    def launch(self, chunks: Seq[Chunk]) -> StepFuture:
        """Start a step. From then on its sequences count as computed, with a pending token."""
        ...


@dataclass(frozen=True)
class Limits:
    """What the loop may hold at once."""

    max_rows: int
    max_step_tokens: int
    max_waiting: int
    max_context: int


class ServingLoop:
    """Continuous batching: answers join and leave between any two steps.

    Args:
        pulse: gets the number of running answers and the time between their tokens.
        thread_context: entered by the loop's thread before it works.
        device_works: whether the engine can continue; asked after a step that failed.
        on_device_lost: called when it cannot, after the loop has ended and all listeners know.
        memory: tells what is in the device's memory; called from any thread.

    Attributes:
        progress: what the loop's thread does, and how long that may take.
        problem: why the loop answers no more, in words; empty while it does.
    """

    def __init__(
        self,
        engine: StepRunner,
        slots: Slots,
        blocks: BlockPool,
        new_decoder: NewDecoder,
        *,
        eos: frozenset[int],
        limits: Limits,
        metrics: Metrics,
        pulse: Pulse | None = None,
        thread_context: Callable[[], AbstractContextManager[object]] = nullcontext,
        device_works: Callable[[], bool] = lambda: True,
        on_device_lost: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        progress: StepProgress | None = None,
        memory: Callable[[], DeviceMemory] = DeviceMemory,
    ) -> None:
        self._engine = engine
        self._blocks = blocks
        self._limits = limits
        self._metrics = metrics
        self.max_context = min(limits.max_context, blocks.num_total * blocks.block_tokens)
        self.max_answers = limits.max_waiting + limits.max_rows  # that run or wait at once
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._capacity = Capacity(max_answers=self.max_answers, max_context=self.max_context)
        self._intake = Intake(new_decoder, self._wake.set, self._capacity, eos, clock)
        self._admission = Admission(
            slots, blocks, max_rows=limits.max_rows, metrics=metrics, clock=clock
        )
        self._answers = OpenAnswers(
            self._intake, self._capacity, self._admission, metrics, pulse, clock
        )
        self._in_flight: deque[tuple[StepFuture, Seq[Chunk]]] = deque()
        self._pulse = pulse
        self._memory = memory
        self._thread_context = thread_context
        self._device_works, self._on_device_lost = device_works, on_device_lost
        self._working = True
        self.progress = progress or StepProgress("the start of the engine")
        self.problem = ""
        self._unfreed: tuple[object, ...] = ()
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
        while self._capacity.queued and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.02)
        self._stop.set()
        self.wake()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """True while requests are accepted and the thread runs."""
        return self._intake.open and self._thread.is_alive()

    def give_up(self, problem: str) -> None:
        """The loop's thread hangs: refuse all that comes, and end the answers that are open. Only
        for a process that ends soon, since the thread may wake and work on."""
        self.problem = problem
        self._intake.close()
        self._take_inbox()
        error = "the engine hangs and is started again; try again in a moment"
        self._answers.end_all(Unavailable(error))
        self._answers.flush()

    def wake(self) -> None:
        """Try to admit again now, because an adapter was loaded, say."""
        self._wake.set()

    def submit(self, request: Generation, listener: Listener) -> Handle:
        """Queue the `n` answers of a request; `listener` hears of each from the loop's thread.

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
        running = list(self._answers.running.values())
        names = Counter(str(answer.adapter or "base") for answer in running)
        total = self._blocks.num_total
        return LoopStats(
            running=len(running),
            waiting=max(self._capacity.queued - len(running), 0),
            kv_blocks_used=total - self._blocks.num_free,
            kv_blocks_total=total,
            by_adapter_running=dict(names),
            memory=self._memory(),
        )

    # Called from the loop's own thread.

    def _run(self) -> None:
        try:
            with self._thread_context():
                while self._working and not self._stop.is_set():
                    self._iterate()
        finally:  # a fault of the loop itself must not leave listeners waiting for ever
            try:
                self._end_all()
            finally:
                self.progress.end()
                if not self._working:
                    self._on_device_lost()

    def _end_all(self) -> None:
        self._intake.close()
        self._take_inbox()
        self._answers.end_all(
            Unavailable("the engine has stopped; try again when the server is back")
        )
        self._answers.flush()

    def _iterate(self) -> None:
        self.progress.begin("the engine's work between two steps")
        self._take_inbox()
        self._answers.end_late()
        self._admit()
        if self._pulse is not None:
            self._pulse.running = len(self._answers.running)
        launched = self._launch()
        in_flight = len(self._in_flight)
        due = bool(in_flight) and not (launched and in_flight <= self._engine.ahead)
        if due:
            self._collect()
        self._answers.flush()
        if not due and not self._answers.running:
            self.progress.begin("the engine's wait for requests")
            self._wake.wait(_IDLE_WAIT_S)
            self._wake.clear()

    def _take_inbox(self) -> None:
        for answer in self._intake.take_submitted():
            self._answers.add(answer)
        for answer in self._intake.take_cancelled():
            self._answers.end(answer, FinishReason.CANCELLED)

    def _admit(self) -> None:
        running = self._answers.running
        for answer in self._admission.admit(running, self._refuse, self._preempt):
            running[answer.sequence] = answer

    def _preempt(self, answer: Answer) -> None:
        del self._answers.running[answer.sequence]
        self._admission.put_back(answer)
        self._metrics.num_preemptions.inc()

    def _refuse(self, answer: Answer, error: Exception) -> None:
        if isinstance(error, (VerandahError, StoreError)):
            self._answers.end(answer, FinishReason.ERROR, error)
        else:
            log.error("adapter %s could not be put in a slot", answer.adapter, exc_info=error)
            self._answers.fail([answer.sequence], error)

    def _launch(self) -> bool:
        """Plan a step and start it; False when there was none to start, or it failed."""
        running = self._answers.running
        ready = [sequence for sequence in running if sequence.wants_steps]
        accounts = self._admission.accounts(running)
        plan = plan_step(ready, self._blocks, self._limits.max_step_tokens, accounts)
        for sequence in plan.preempted:
            self._preempt(running[sequence])
        if not plan.chunks:
            return False
        self.progress.begin_step(_tokens(plan.chunks))
        try:
            step = self._engine.launch(plan.chunks)
        except Exception as error:  # whatever a kernel may raise: the loop must outlive it
            self._fail_steps(error, plan.chunks)
            return False
        self._in_flight.append((step, plan.chunks))
        return True

    def _collect(self) -> None:
        """Wait for the oldest step in flight and deliver its outputs."""
        step, chunks = self._in_flight.popleft()
        self.progress.begin_step(_tokens(chunks))
        try:
            outputs = step.outputs()
        except Exception as error:
            self._fail_steps(error, chunks, step)
            return
        self.progress.begin("the engine's work after a step")
        self._answers.deliver(outputs)
        self._metrics.iteration_tokens.observe(_tokens(chunks))

    def _fail_steps(
        self, error: Exception, chunks: Seq[Chunk], step: StepFuture | None = None
    ) -> None:
        """End all that run: nobody knows what a failed step wrote, and later steps read it.

        An answer ends too if a step in flight ran it and it was pre-empted since.
        """
        log.error("a step of %d chunks failed", len(chunks), exc_info=error)
        self._working = self._device_works()
        if not self._working:
            log.critical("the engine's device has failed; the engine stops")
            # torch aborts the process when it frees an event or pinned memory of a lost device, and
            # the error's traceback holds some too. So all of it is kept until the process ends.
            self._unfreed = (error, step, *self._in_flight)
        touched = dict.fromkeys(self._answers.running)
        for ran in (chunks, *(ran for _, ran in self._in_flight)):
            touched |= dict.fromkeys(sequence for sequence, _ in ran)
        self._in_flight.clear()
        self._answers.fail(touched, error)
        self._blocks.forget()


def _tokens(chunks: Seq[Chunk]) -> int:
    return sum(length for _, length in chunks)
