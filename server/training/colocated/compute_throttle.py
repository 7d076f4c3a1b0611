"""Slow a model that trains down, linear by linear, to the share of the time that it may work.

Rests stand between the products of a pass, forward and backward, so that a step of the engine meets
a part of it and not all. What was launched is waited for when a rest is due and not before: to wait
after every product costs training half of its speed, however small the rests. Knows neither what is
trained nor why it must give way.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn

from server.bases.model import BaseModel
from server.pulse import Pulse
from server.training.colocated.share_controller import ShareController

_LOOK_S: Final = 0.01  # between looks at the pulse
_PAUSE_S: Final = 0.002  # between looks while training pauses
_SHORTEST_S: Final = 3e-4  # of a rest: a shorter one would mostly be the system's own delay
_LONGEST_S: Final = 0.5  # of a rest: not all that took long was work on the device


class ComputeThrottle:
    """Keeps what runs on a model to the share that `throttle` allows by what `pulse` tells.

    For one thread that trains, and autograd's for it.

    Args:
        finish: waits on the thread that calls it until what it has launched has run.
    """

    def __init__(
        self,
        controller: ShareController,
        pulse: Pulse,
        *,
        finish: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._controller = controller
        self._pulse = pulse
        self._finish = finish
        self._clock = clock
        self._sleep = sleep
        self._looked = self._since = clock()
        self._owed = 0.0  # rest, for work done before

    def slow_down(self, base: BaseModel) -> None:
        """From now on every pass through `base` rests between its linears, when it must."""
        for target in base.targets.values():
            target.module.register_forward_hook(self._passed)

    def rest(self) -> None:
        """A piece of work was launched: wait until the next may be."""
        self._look()
        if self._controller.share == 0:
            self._pause()
            self._since = self._clock()
        self._charge()
        if self._owed >= _SHORTEST_S:
            self._finish()
            self._charge()
            self._rest()

    def _charge(self) -> None:
        """Rest is owed for the time since it was asked last."""
        now, share = self._clock(), self._controller.share
        if share == 1:
            self._owed = 0.0
        else:
            self._owed += min((now - self._since) * (1 / share - 1), _LONGEST_S)
        self._since = now

    def _rest(self) -> None:
        self._sleep(min(self._owed, _LONGEST_S))
        now = self._clock()
        self._owed = max(self._owed - (now - self._since), -_SHORTEST_S)
        self._since = now

    def _pause(self) -> None:
        self._finish()
        self._controller.paused(self._pulse.read(), self._clock())
        while self._controller.share == 0:
            self._sleep(_PAUSE_S)
            self._controller.look(self._pulse.read(), self._clock())

    def _look(self) -> None:
        now, was_busy = self._clock(), self._controller.busy
        changed = was_busy != bool(self._pulse.running)
        if changed or now - self._looked >= _LOOK_S:
            self._looked = now
            self._since = self._since if was_busy else now
            self._controller.look(self._pulse.read(), now)

    def _passed(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not self._pulse.running and not self._controller.busy:
            return  # without requests this is all that it costs
        self.rest()
        if self._controller.share < 1 and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._returned)

    def _returned(self, _gradient: Tensor) -> None:
        self.rest()
