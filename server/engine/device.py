"""Numbers to the device and back without making the host wait. Knows nothing of what they mean."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

Numbers = Seq[int] | Seq[float] | Seq[Seq[int]] | Seq[Seq[float]]


def to_device(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `numbers` on `device`.

    On CUDA it goes through pinned memory: a copy from ordinary memory would wait for all that the
    stream has yet to do.
    """
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    return torch.tensor(numbers, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


class Arriving:
    """Copies of tensors that are on their way to the host."""

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
