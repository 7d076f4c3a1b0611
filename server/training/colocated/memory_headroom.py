"""Leave device memory to the engine that serves in the same process. Knows no engine, no trainer.

Both allocate from one pool, and the last to ask is refused. So a training pass that has allocated
too much ends as if memory had run out, while there is some left.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from server.bases.model import BaseModel

_RESERVED: Final = 2**31  # for logits and samples of a few hundred rows, and prompts
_RESERVED_SHARE: Final = 0.25  # of the memory that is free, where that is less
_CHECK_EVERY: Final = 8  # linears, about a layer


def keep_memory_headroom(base: BaseModel) -> None:
    """From now on a pass through `base` raises torch.OutOfMemoryError if too little is left of the
    memory that its CUDA device has free now."""
    allocated = partial(_allocated, base.device)
    free, _ = torch.cuda.mem_get_info(base.device)
    free += torch.cuda.memory_reserved(base.device) - allocated()
    limit = allocated() + free - min(_RESERVED, int(free * _RESERVED_SHARE))
    limit_passes(base, limit, allocated)


def limit_passes(base: BaseModel, limit: int, allocated: Callable[[], int]) -> None:
    """Have passes raise torch.OutOfMemoryError while more than `limit` bytes are `allocated`."""

    def check(_module: nn.Module, _inputs: Any) -> None:
        if allocated() > limit:
            raise torch.OutOfMemoryError(
                "training would use memory that serving needs: over "
                f"{limit / 2**30:.1f} GiB of the device are allocated"
            )

    for target in list(base.targets.values())[::_CHECK_EVERY]:
        target.module.register_forward_pre_hook(check)


def _allocated(device: torch.device) -> int:
    # A third of the time that torch.cuda.memory_allocated takes.
    stats = torch.cuda.memory_stats_as_nested_dict(device)
    return int(stats["allocated_bytes"]["all"]["current"])
