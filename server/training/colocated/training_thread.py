"""Training in the process of an engine: a thread on a stream that comes after the engine's.

The base is in memory once, and the device's scheduler, which is quicker than any rest, lets the
engine's kernels go first. What it costs is isolation: a fault of the device ends both. Knows no
jobs: what the thread does is handed to it.
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
from server.bases.shared_weights import twin_of
from server.pulse import Pulse
from server.training.colocated.compute_throttle import ComputeThrottle
from server.training.colocated.share_controller import ShareController
from server.training.job.worker_loop import DeviceLost

log = logging.getLogger(__name__)

LOWEST: Final = 0  # the priority of a stream: the engine's has the highest
SWITCH_S: Final = 1e-4  # how long a thread may keep the interpreter from an engine's
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0  # work that went well for as long did not fail of its start

Work = Callable[[threading.Event], None]
"""Goes on until the event is set."""


class TrainingThread:
    """A thread that trains on the base of an engine, which it gives way to.

    Args:
        base: the engine's.
        pulse: told by the engine.
        target: see `ShareController`; infinite: the device's own priorities are all.
        lost: called when the device has failed, and nothing in this process can use it again.

    Attributes:
        base: to train on; the same weights.
        restarts: how often the work was begun again after it had failed.
    """

    def __init__(
        self,
        base: BaseModel,
        pulse: Pulse,
        target: float,
        lost: Callable[[], None],
    ) -> None:
        self.base = twin_of(base)
        if math.isfinite(target):
            finish = partial(_finish, base.device)
            ComputeThrottle(ShareController(target), pulse, finish=finish).slow_down(self.base)
        self.restarts = 0
        self._lost = lost
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Work, *, on_end: Callable[[], None] = lambda: None) -> None:
        """Do `work` until `stop`; begin again, ever later, when it fails: then call `on_end`.

        On CUDA it is done on a stream of the lowest priority.
        """
        self._stop.clear()
        run = (work, on_end)
        self._thread = threading.Thread(target=self._run, args=run, name="training", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the work to end; returns at once."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; whether it has come."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.alive

    def _run(self, work: Work, on_end: Callable[[], None]) -> None:
        pause = _FIRST_PAUSE_S
        with self._low():
            while not self._stop.is_set():
                began = time.monotonic()
                if self._is_over(work):
                    return
                if time.monotonic() - began > _STEADY_S:
                    pause = _FIRST_PAUSE_S
                log.warning("training begins again in %g s", pause)
                _tell(on_end)
                self._stop.wait(pause)
                self.restarts += 1
                pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _is_over(self, work: Work) -> bool:
        """Do the work; False: it failed, and is to begin again."""
        try:
            work(self._stop)
        except DeviceLost:
            log.critical("the device has failed while it trained", exc_info=True)
            self._lost()
        except Exception:
            log.exception("training failed")
            return False
        return True

    def _low(self) -> AbstractContextManager[object]:
        if self.base.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self.base.device, priority=LOWEST))


@contextlib.contextmanager
def fast_thread_switching() -> Iterator[None]:
    """To be entered where an engine runs: its thread waits no longer than `SWITCH_S` for the Python
    of others, who train or load adapters, and not the 5 ms that are Python's own."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _tell(on_end: Callable[[], None]) -> None:
    try:
        on_end()
    except Exception:  # the work is to begin again all the same
        log.exception("nobody could be told that training failed")
