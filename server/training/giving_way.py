"""Slow a model that trains down, layer by layer, to the share of the time that it may work.

Processes take turns on a GPU, a millisecond or two each, so what disturbs an answer is how much
work lies ready when it is training's turn. Rests stand between layers, forward and backward, and no
more than two layers are ever ready. Knows neither what is trained nor why it must give way.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from server.bases.model import BaseModel
from server.pulse import PulseReader
from server.training.throttle import Throttle

_LOOK_S: Final = 0.02  # between looks at the pulse
_PAUSE_S: Final = 0.002  # between looks while training pauses
_LONGEST_S: Final = 0.5  # of a rest: not all that took long was work on the device
_READY: Final = 2  # layers launched and not done
_FEWEST: Final = 128  # positions of a pass, below which a smaller one is no shorter


class GivingWay:
    """Keeps what runs on a model to the share that `throttle` allows by what `pulse` tells."""

    def __init__(
        self,
        throttle: Throttle,
        pulse: PulseReader,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.throttle = throttle
        self._pulse = pulse
        self._clock = clock
        self._sleep = sleep
        self._looked = self._since = clock()
        self._beside_host = False  # whether the device works while the host goes on
        self._ready: deque[torch.cuda.Event] = deque()

    def slow_down(self, base: BaseModel) -> None:
        """From now on every pass through `base` rests between its layers."""
        self._beside_host = base.device.type == "cuda"
        for layer in _layers(base):
            layer.register_forward_hook(self._passed)

    def positions(self, most: int) -> int:
        """How many positions a forward pass should take now, where `most` are allowed."""
        self._look()
        return min(most, max(_FEWEST, int(most * self.throttle.grain)))

    def rest(self) -> None:
        """A piece of work was launched: wait until the next may be."""
        self._keep_up()
        worked = self._clock() - self._since
        self._look()
        while self.throttle.share == 0:
            self._sleep(_PAUSE_S)
            self._look()
        share = self.throttle.share
        if share < 1:
            self._sleep(min(worked * (1 / share - 1), _LONGEST_S))
        self._since = self._clock()

    def _look(self) -> None:
        now = self._clock()
        # The first request is noticed at once.
        begun = not self.throttle.busy and self._pulse.running
        if begun or now - self._looked >= _LOOK_S:
            self._looked = now
            self.throttle.look(self._pulse.read(), now)

    def _keep_up(self) -> None:
        """Wait for what was launched some layers ago."""
        if not self._beside_host:
            return
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._ready.append(event)
        if len(self._ready) > _READY:
            self._ready.popleft().synchronize()

    def _passed(self, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        self.rest()
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(self._returned)

    def _returned(self, _gradient: Tensor) -> None:
        self.rest()


def _layers(base: BaseModel) -> list[nn.Module]:
    """The decoder's layers; the decoder itself, if it has no list of them."""
    decoder = base.model.get_decoder()
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == base.num_layers:
            return list(module)
    return [decoder]
