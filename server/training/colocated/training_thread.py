"""Train in the process of an engine: in a thread, on a stream of lower priority. Knows no jobs.

The base is in memory once. The device's own scheduler runs the engine's kernels first, which is
quicker than any rest. The cost is isolation: a fault of the device ends both.
"""

import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

import torch

from server.bases.model import BaseModel
from server.loop_progress import Progress
from server.pulse import Pulse
from server.training.colocated.compute_throttle import ComputeThrottle
from server.training.colocated.share_controller import ShareController
from server.training.colocated.shared_weights import twin_of
from server.training.job.worker_loop import DeviceLost

log = logging.getLogger(__name__)

LOWEST_PRIORITY: Final = 0  # of a stream: the engine's has the highest
SWITCH_S: Final = 1e-4  # how long another thread may keep the interpreter from the engine's
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0  # work that failed later than this restarts without the longer pauses

Work = Callable[[threading.Event], None]
"""Runs until the event is set."""


class TrainingThread:
    """A thread that trains on the base of an engine, and slows down while requests run.

    Args:
        base: the engine's.
        pulse: the engine's.
        target: see `ShareController`; infinite: only the device's priorities slow training down.
        lost: called when the device has failed, and this process cannot use it again.
        progress: the work's; the throttle's rests are noted in it.

    Attributes:
        base: to train on; the same weights.
        restarts: how often the work was started again after it had failed.
    """

    def __init__(
        self,
        base: BaseModel,
        pulse: Pulse,
        target: float,
        lost: Callable[[], None],
        progress: Progress | None = None,
    ) -> None:
        self.base = twin_of(base)
        if math.isfinite(target):
            finish = partial(_finish, base.device)
            throttle = ComputeThrottle(
                ShareController(target), pulse, finish=finish, progress=progress
            )
            throttle.slow_down(self.base)
        self.restarts = 0
        self._lost = lost
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> str:
        """What is wrong, in words; empty if nothing is."""
        return "" if self.alive else "training in the engine's process has ended"

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Work, *, on_end: Callable[[], None] = lambda: None) -> None:
        """Do `work` until `stop`, on CUDA on a stream of the lowest priority.

        When it fails, `on_end` is called, and it starts again after ever longer pauses.
        """
        self._stop.clear()
        run = partial(self._run, work, on_end)
        self._thread = threading.Thread(target=run, name="training", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the work to end; returns at once."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; whether it has."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.alive

    def _run(self, work: Work, on_end: Callable[[], None]) -> None:
        pause = _FIRST_PAUSE_S
        with self._low_priority():
            while not self._stop.is_set():
                began = time.monotonic()
                if self._has_ended(work):
                    return
                if time.monotonic() - began > _STEADY_S:
                    pause = _FIRST_PAUSE_S
                log.warning("training starts again in %g s", pause)
                _notify(on_end)
                self._stop.wait(pause)
                self.restarts += 1
                pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _has_ended(self, work: Work) -> bool:
        """Do the work; False: it failed, and must start again."""
        try:
            work(self._stop)
        except DeviceLost:
            log.critical("the device failed during training", exc_info=True)
            self._lost()
        except Exception:
            log.exception("training failed")
            return False
        return True

    def _low_priority(self) -> AbstractContextManager[object]:
        if self.base.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self.base.device, priority=LOWEST_PRIORITY))


@contextlib.contextmanager
def fast_thread_switching() -> Iterator[None]:
    """Within, a thread waits for the Python of another no longer than `SWITCH_S`, and not Python's
    own 5 ms. For processes in which an engine shares the interpreter with training and loading."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _notify(on_end: Callable[[], None]) -> None:
    try:
        on_end()
    except Exception:  # the work must start again all the same
        log.exception("the callback after a failed training failed")
