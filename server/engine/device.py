"""Copies between host and device that do not make the host wait, and the stream that engines use.

Knows nothing of what the numbers mean.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final

import torch
from torch import Tensor

HIGHEST_STREAM_PRIORITY: Final = -5
"""Lower numbers come first. No device goes down to -5; torch then takes the device's highest."""

Numbers = Seq[int] | Seq[float] | Seq[Seq[int]] | Seq[Seq[float]]


def high_priority_stream(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A context for the engine's thread: its launches go ahead of other work on the device.

    Every call of the result enters the same stream. On a CPU it changes nothing.
    """
    if device.type != "cuda":
        return nullcontext
    return partial(torch.cuda.stream, torch.cuda.Stream(device, priority=HIGHEST_STREAM_PRIORITY))


def to_device(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `numbers` on `device`.

    On CUDA it goes through pinned memory: a copy from ordinary memory would wait for all work that
    is queued on the stream.
    """
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    return torch.tensor(numbers, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


class HostCopies:
    """Copies of tensors to the host. They start at once; `wait` gives them."""

    def __init__(self, tensors: Seq[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._copies = list(tensors)
        cuda = next((it.device for it in tensors if it.is_cuda), None)
        if cuda is None:
            return
        self._copies = [torch.empty_like(it, device="cpu", pin_memory=True) for it in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(cuda))

    def wait(self) -> list[Tensor]:
        """The tensors on the host, in their order; waits until all have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies
