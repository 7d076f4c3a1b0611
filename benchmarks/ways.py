"""The ways to train on the GPU that serves, each of which can be started and stopped.

One of them is the product's: a process of its own on borrowed weights, that gives way. The others
are here alone, to be compared with it. In the engine's process, a thread trains on a stream of low
priority, with or without giving way, or on some multiprocessors of its own; or the engine's loop
lets one layer of training run before each step.
"""

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from transformers import AutoConfig, PretrainedConfig

from benchmarks.cohorts import Work, trainers_of, work_of
from benchmarks.shapes import SHAPES
from server.bases.lending import Weights, borrow
from server.bases.model import BaseModel
from server.engine.sequence import Chunk
from server.pulse import PulseReader
from server.scheduler.loop import Flight, Stepper
from server.training.giving_way import GivingWay
from server.training.steps import take_step
from server.training.throttle import Throttle

HIGH: Final = -5  # more than there are: the highest
_NO_WAIT_S: Final = 1e-4  # for the interpreter, between threads of one process
_STUCK_S: Final = 10.0

Marks = Sequence[tuple[float, int]]
"""When so many tokens were trained; seconds of a clock that all processes share."""


class Fixed(Throttle):
    """A share that nothing changes, while requests run."""

    def __init__(self, share: float) -> None:
        super().__init__(1.0)
        self._fixed = share

    @property
    def share(self) -> float:
        return self._fixed if self.busy else 1.0

    @property
    def grain(self) -> float:
        return 1.0


class Way(Protocol):
    """Trains between `start` and `stop`."""

    def start(self) -> None: ...

    def stop(self) -> Marks: ...


@dataclass(frozen=True)
class Job:
    """What is trained, the same for every way. `options` are those of `benchmarks.cohorts`."""

    work: Work
    target: float

    @classmethod
    def of(cls, options: Any, target: float) -> "Job":
        work = work_of(options)
        return cls(replace(work, plan=replace(work.plan, n_epochs=10_000, batch_size=4)), target)


class Training:
    """A job that never ends, in a thread."""

    def __init__(
        self,
        base: BaseModel,
        job: Job,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        (self._trainer,) = trainers_of(base, job.work, 1)
        self._within = within
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._marks: list[tuple[float, int]] = []
        self.bound: Callable[[int], int] = lambda most: most

    def start(self) -> None:
        self._stop.clear()
        self._marks = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> Marks:
        assert self._thread is not None, "it was not started"
        self._stop.set()
        self._thread.join()
        return self._marks

    def _run(self) -> None:
        trainer = self._trainer
        with self._within():
            while not self._stop.is_set():
                (result,) = take_step([trainer], self.bound(trainer.part_tokens))
                if isinstance(result, Exception):
                    raise result
                self._marks.append((time.perf_counter(), trainer.trained_tokens))


def config_of(shape: str) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.for_model("llama", **SHAPES[shape])
    return config


# A process of its own.


@dataclass(frozen=True)
class Memory:
    """Bytes of the device that another process has come to take, from one moment to the next."""

    weights: int
    context: int
    borrowed: int
    job: int
    activations: int


def train_apart(link: "Connection[Any, Any]", socket: Path, shape: str, job: Job) -> None:
    """The process: says what it takes, then obeys."""
    torch.multiprocessing.set_sharing_strategy("file_system")
    torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    first = _taken()
    link.recv()
    loan = borrow(socket, shape, lambda: config_of(shape), patience_s=5, stop=threading.Event())
    borrowed = _taken()
    training = Training(loan.base, job)
    ready = _taken()
    training.start()
    time.sleep(2)
    training.stop()
    link.send((first, borrowed - first, ready - borrowed, _peak()))
    giving: GivingWay | None = None
    while (told := link.recv()) is not None:
        if told == "start":
            training.start()
        elif told == "stop":
            link.send(training.stop())
        else:
            pulse, share = told
            throttle = Throttle(job.target) if share is None else Fixed(share)
            if giving is None:
                giving = GivingWay(throttle, PulseReader(pulse))
                giving.slow_down(loan.base)
                training.bound = giving.positions
            giving.throttle = throttle


def _taken() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


def _peak() -> int:
    """Beyond what is held between steps."""
    if not torch.cuda.is_available():
        return 0
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()


class Apart:
    """A process of its own, on weights borrowed at a socket."""

    def __init__(self, socket: Path, shape: str, job: Job, weights: int) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._link, theirs = context.Pipe()
        before = _taken()
        self._process = context.Process(
            target=train_apart, args=(theirs, socket, shape, job), daemon=True
        )
        self._process.start()
        theirs.close()
        self._link.send("go")
        first, borrowed, ready, peak = self._link.recv()
        self.memory = Memory(weights, first - before, borrowed, ready, peak)

    def give_way(self, pulse: Path, share: float | None = None) -> None:
        """From now on, to the target, or with a fixed share of the time."""
        self._link.send((pulse, share))

    def start(self) -> None:
        self._link.send("start")

    def stop(self) -> Marks:
        self._link.send("stop")
        marks: Marks = self._link.recv()
        return marks

    def end(self) -> None:
        self._link.send(None)
        self._process.join()


# In the engine's process.


class Between:
    """Stands between the loop and its engine; does nothing until told."""

    def __init__(self, engine: Stepper) -> None:
        self._engine = engine
        self.stream: torch.cuda.Stream | None = None  # on which steps are to run
        self.before: Callable[[], None] = lambda: None

    @property
    def ahead(self) -> int:
        return self._engine.ahead

    def launch(self, chunks: Sequence[Chunk]) -> Flight:
        self.before()
        if self.stream is None:
            return self._engine.launch(chunks)
        with torch.cuda.stream(self.stream):
            return self._engine.launch(chunks)


class InThread:
    """A thread of the engine's process, whose steps run on a stream of the highest priority.

    Args:
        giving: slows it down; None: nothing does.
        multiprocessors: of its own; 0: it shares them all.
    """

    def __init__(
        self,
        base: BaseModel,
        between: Between,
        job: Job,
        giving: GivingWay | None = None,
        multiprocessors: int = 0,
    ) -> None:
        self._between = between
        self._apart: torch.cuda.Stream | None = None
        if multiprocessors:
            from torch.cuda.green_contexts import GreenContext

            self._context = cast(Any, GreenContext.create(num_sms=multiprocessors))
            self._apart = self._context.Stream()
        self._training = Training(base, job, self._low)
        if giving is not None:
            giving.slow_down(base)
            self._training.bound = giving.positions

    def start(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self._between.stream = torch.cuda.Stream(priority=HIGH)
        self._waited = sys.getswitchinterval()
        sys.setswitchinterval(_NO_WAIT_S)
        self._training.start()

    def stop(self) -> Marks:
        marks = self._training.stop()
        sys.setswitchinterval(self._waited)
        self._between.stream = None
        return marks

    @contextlib.contextmanager
    def _low(self) -> Iterator[None]:
        if not torch.cuda.is_available():
            yield
            return
        with torch.cuda.stream(self._apart or torch.cuda.Stream(priority=0)):
            yield


class Interleaved(GivingWay):
    """Training in a thread that runs some layers whenever the loop lets it, and only then.

    Args:
        every: before which steps it is let, and how many `layers` then.
    """

    def __init__(
        self,
        base: BaseModel,
        between: Between,
        job: Job,
        pulse: PulseReader,
        *,
        every: int = 1,
        layers: int = 1,
    ) -> None:
        super().__init__(Throttle(job.target), pulse)
        self._between = between
        self._every = itertools.cycle(range(every))
        self._layers_at_once = layers
        self._open = False
        self.slow_down(base)
        self._training = Training(base, job)

    def start(self) -> None:
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._open = True
        self._training.start()
        self._theirs.acquire(timeout=_STUCK_S)
        self._between.before = self._let

    def stop(self) -> Marks:
        self._between.before = lambda: None
        self._open = False
        self._mine.release()
        return self._training.stop()

    def rest(self) -> None:
        """On the trainer's thread, or autograd's."""
        if self._open:
            self._theirs.release()
            self._mine.acquire(timeout=_STUCK_S)

    def _let(self) -> None:
        """On the loop's thread."""
        if next(self._every) == 0:
            for _ in range(self._layers_at_once):
                self._mine.release()
                self._theirs.acquire(timeout=_STUCK_S)


def twin(weights: Weights, shape: str) -> BaseModel:
    """Another model over the engine's weights, for this process."""
    return weights.build(config_of(shape))
