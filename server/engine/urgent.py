"""The stream on which an engine works, so that what else wants its device comes after it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final

import torch

HIGHEST: Final = -5
"""The priority of a stream: more than devices have, of which torch makes the highest there is."""


def urgent(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What a thread enters to launch on a stream of the highest priority: always the same one.

    On a CPU it changes nothing.
    """
    if device.type != "cuda":
        return nullcontext
    return partial(torch.cuda.stream, torch.cuda.Stream(device, priority=HIGHEST))
