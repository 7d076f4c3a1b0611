"""Slow a training model down, linear by linear, to a share of the time. Knows no trainer.

It rests between the products of a pass, forward and backward, so that a step of the engine meets a
part of the pass and not all of it. The device is waited for only when a rest is due: to wait after
every product costs training half of its speed, however short the rests.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn

from server.bases.model import BaseModel
from server.loop_progress import Progress
from server.pulse import Pulse
from server.training.colocated.share_controller import ShareController

_READ_EVERY_S: Final = 0.01  # the pulse
_PAUSE_S: Final = 0.002  # the same, while training pauses
_SHORTEST_REST_S: Final = 3e-4  # a shorter one would mostly be the system's own delay
_AFTER_REST_S: Final = 120.0  # until the next, or the next pass
_LONGEST_REST_S: Final = 0.5  # not all that took long was work on the device


class ComputeThrottle:
    """Keeps a model to the share of the time that `controller` allows, given the engine's `pulse`.

    For one training thread and the autograd thread that works for it.

    Args:
        finish: waits until everything that the calling thread has launched has run.
        progress: the training loop's: a rest is no hang.
    """

    def __init__(
        self,
        controller: ShareController,
        pulse: Pulse,
        *,
        finish: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
        progress: Progress | None = None,
    ) -> None:
        self._controller = controller
        self._pulse = pulse
        self._finish = finish
        self._clock = clock
        self._sleep = sleep
        self._progress = progress or Progress()
        self._read_at = self._charged_until = clock()
        self._owed_s = 0.0  # rest, for work done before

    def slow_down(self, base: BaseModel) -> None:
        """From now on every pass through `base` rests between its linears while requests run."""
        for target in base.targets.values():
            target.module.register_forward_hook(self._passed)

    def rest(self) -> None:
        """Call after work was launched: wait until the next may be."""
        self._look()
        if self._controller.share == 0:
            self._pause()
            self._charged_until = self._clock()
        self._charge()
        if self._owed_s >= _SHORTEST_REST_S:
            self._finish()
            self._charge()
            self._rest()

    def _charge(self) -> None:
        """Add the rest owed for the work since the last charge."""
        now, share = self._clock(), self._controller.share
        if share == 1:
            self._owed_s = 0.0
        else:
            self._owed_s += min((now - self._charged_until) * (1 / share - 1), _LONGEST_REST_S)
        self._charged_until = now

    def _rest(self) -> None:
        self._say_resting()
        self._sleep(min(self._owed_s, _LONGEST_REST_S))
        now = self._clock()
        self._owed_s = max(self._owed_s - (now - self._charged_until), -_SHORTEST_REST_S)
        self._charged_until = now

    def _pause(self) -> None:
        self._finish()
        self._controller.paused(self._pulse.read(), self._clock())
        while self._controller.share == 0:
            self._say_resting()
            self._sleep(_PAUSE_S)
            self._controller.look(self._pulse.read(), self._clock())

    def _say_resting(self) -> None:
        self._progress.begin("training beside answers", _AFTER_REST_S)

    def _look(self) -> None:
        now, was_busy = self._clock(), self._controller.busy
        changed = was_busy != bool(self._pulse.running)
        if changed or now - self._read_at >= _READ_EVERY_S:
            self._read_at = now
            self._charged_until = self._charged_until if was_busy else now
            self._controller.look(self._pulse.read(), now)

    def _passed(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not self._pulse.running and not self._controller.busy:
            return  # the whole cost while no requests run
        self.rest()
        if self._controller.share < 1 and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._returned)

    def _returned(self, _gradient: Tensor) -> None:
        self.rest()
