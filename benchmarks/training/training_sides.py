"""Training on the GPU that serves, as the product does it, and training alone.

Both train in a thread of the engine's process, on a copy of its base that shares the weights.
Decision 15 says what else was measured.
"""

import argparse
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from benchmarks.training.cohorts import Work, trainers_of, work_of
from server.bases.model import BaseModel
from server.pulse import Pulse
from server.training.colocated.memory_headroom import keep_memory_headroom
from server.training.colocated.shared_weights import twin_of
from server.training.colocated.training_thread import TrainingThread
from server.training.run.run_steps import take_step

Marks = Sequence[tuple[float, int]]
"""Times, and the number of tokens trained by then."""


class TrainingSide(Protocol):
    """Trains between `start` and `stop`."""

    def start(self) -> None: ...

    def stop(self) -> Marks: ...


def endless_work(options: argparse.Namespace) -> Work:
    """What every side trains. `benchmarks.training.cohorts` has the options."""
    work = work_of(options)
    return replace(work, plan=replace(work.plan, n_epochs=10_000, batch_size=4))


class Training:
    """A job that never ends."""

    def __init__(self, base: BaseModel, work: Work) -> None:
        (self._trainer,) = trainers_of(base, work, 1)
        take_step([self._trainer], self._trainer.part_tokens)  # kernels are compiled
        self.marks: list[tuple[float, int]] = []

    def __call__(self, stop: threading.Event) -> None:
        trainer = self._trainer
        self.marks = []
        while not stop.is_set():
            (result,) = take_step([trainer], trainer.part_tokens)
            if isinstance(result, Exception):
                raise result
            self.marks.append((time.perf_counter(), trainer.trained_tokens))


class Product:
    """`server.training.colocated.training_thread.TrainingThread`, as `verandah serve` makes it."""

    def __init__(self, base: BaseModel, pulse: Pulse, work: Work, latency: float) -> None:
        self._thread = TrainingThread(base, pulse, latency, _lost)
        if base.device.type == "cuda":
            keep_memory_headroom(self._thread.base)
        self._training = Training(self._thread.base, work)

    def start(self) -> None:
        self._thread.start(self._training)

    def stop(self) -> Marks:
        self._thread.stop()
        while not self._thread.join(60):
            print("a step takes longer than a minute", flush=True)
        return self._training.marks


class Plain:
    """A thread that knows nothing of an engine, on the default stream."""

    def __init__(self, base: BaseModel, work: Work) -> None:
        self._training = Training(twin_of(base), work)
        self._stop = threading.Event()

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._training, args=(self._stop,), daemon=True)
        self._thread.start()

    def stop(self) -> Marks:
        self._stop.set()
        self._thread.join()
        return self._training.marks


def _lost() -> None:
    raise SystemExit("the device has failed")
