"""Memory of a device that training leaves to the engine in its process. Knows neither.

Both take theirs of one allocator, which says no to whoever asks last. So a pass that has taken too
much is ended as if memory had run out, while there still is some.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn

from server.bases.model import BaseModel

_KEPT: Final = 2**31  # for logits and samples of a few hundred rows, and prompts
_KEPT_SHARE: Final = 0.25  # of what is there, where that is less
_EVERY: Final = 8  # linears between two looks, about a layer


def keep_memory_headroom(base: BaseModel) -> None:
    """From now on a pass through `base` raises torch.OutOfMemoryError when, of what its CUDA device
    has free now, too little is left."""
    allocated = _allocated(base.device)
    free, _ = torch.cuda.mem_get_info(base.device)
    there = free + torch.cuda.memory_reserved(base.device) - allocated()
    limit = allocated() + there - min(_KEPT, int(there * _KEPT_SHARE))
    limit_passes(base, limit, allocated)


def limit_passes(base: BaseModel, limit: int, allocated: Callable[[], int]) -> None:
    """Have passes raise torch.OutOfMemoryError while more than `limit` bytes are `allocated`."""

    def check(_module: nn.Module, _inputs: Any) -> None:
        if allocated() > limit:
            raise torch.OutOfMemoryError(
                f"training would take the memory that answers need: {limit / 2**30:.1f} GiB of the "
                "device are taken, by the engine or by what trains"
            )

    for target in list(base.targets.values())[::_EVERY]:
        target.module.register_forward_pre_hook(check)


def _allocated(device: torch.device) -> Callable[[], int]:
    def bytes_now() -> int:
        # A third of the time that torch.cuda.memory_allocated takes.
        stats = torch.cuda.memory_stats_as_nested_dict(device)
        found: int = stats["allocated_bytes"]["all"]["current"]
        return found

    return bytes_now
