"""Slow a model that trains down, linear by linear, to the share of the time that it may work.

Rests stand between the products of a pass, forward and backward, so that a step of the engine meets
a part of a layer and not all of it, and while there are rests no product is launched before the one
before it has run. Knows neither what is trained nor why it must give way.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from server.bases.model import BaseModel
from server.pulse import Pulse
from server.training.throttle import Throttle

_LOOK_S: Final = 0.01  # between looks at the pulse
_PAUSE_S: Final = 0.002  # between looks while training pauses
_SHORTEST_S: Final = 2e-4  # of a rest: a shorter one would mostly be the system's own delay
_LONGEST_S: Final = 0.5  # of a rest: not all that took long was work on the device


class GivingWay:
    """Keeps what runs on a model to the share that `throttle` allows by what `pulse` tells.

    For one thread that trains, and autograd's for it.
    """

    def __init__(
        self,
        throttle: Throttle,
        pulse: Pulse,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.throttle = throttle
        self._pulse = pulse
        self._clock = clock
        self._sleep = sleep
        self._looked = self._since = clock()
        self._owed = 0.0  # rest, for work done before
        self._beside_host = False  # whether the device works while the host goes on

    def slow_down(self, base: BaseModel) -> None:
        """From now on every pass through `base` rests between its linears, when it must."""
        self._beside_host = base.device.type == "cuda"
        for target in base.targets.values():
            target.module.register_forward_hook(self._passed)

    def rest(self) -> None:
        """A piece of work was launched: wait until the next may be."""
        self._look()
        if self.throttle.share == 0:
            self._pause()
        share = self.throttle.share
        if share < 1:
            self._finish()
            self._rest(share)
        self._since = self._clock()

    def _rest(self, share: float) -> None:
        now = self._clock()
        self._owed += min((now - self._since) * (1 / share - 1), _LONGEST_S)
        if self._owed >= _SHORTEST_S:
            self._sleep(min(self._owed, _LONGEST_S))
            self._owed = max(self._owed - (self._clock() - now), -_SHORTEST_S)

    def _pause(self) -> None:
        self._finish()
        self.throttle.paused(self._pulse.read(), self._clock())
        while self.throttle.share == 0:
            self._sleep(_PAUSE_S)
            self.throttle.look(self._pulse.read(), self._clock())

    def _look(self) -> None:
        now, was_busy = self._clock(), self.throttle.busy
        changed = was_busy != bool(self._pulse.running)
        if changed or now - self._looked >= _LOOK_S:
            self._looked = now
            self._since = self._since if was_busy else now
            self.throttle.look(self._pulse.read(), now)

    def _finish(self) -> None:
        """Wait for what was launched."""
        if self._beside_host:
            torch.cuda.current_stream().synchronize()

    def _passed(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not self._pulse.running and not self.throttle.busy:
            return  # without requests this is all that it costs
        self.rest()
        if self.throttle.share < 1 and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._returned)

    def _returned(self, _gradient: Tensor) -> None:
        self.rest()
