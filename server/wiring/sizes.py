"""Chooses sizes that the settings leave open (0): rows, tokens and memory. Knows no engine."""

from dataclasses import dataclass
from typing import Final

import torch

from server.config import Settings

_MIB = 2**20
# Of the memory that weights and adapters leave free; the worker trains in the rest.
_SHARE_OF_FREE: Final = 0.6


@dataclass(frozen=True)
class Sizes:
    """Rows and tokens of a step, and MiB for resident adapters."""

    max_rows: int
    step_tokens: int
    adapter_mb: int

    @classmethod
    def of(cls, settings: Settings, device: torch.device) -> "Sizes":
        """The settings', or the device's default: a GPU needs larger steps than a CPU."""
        cuda = device.type == "cuda"
        rows = settings.max_batch_rows or (256 if cuda else 64)
        return cls(
            max_rows=rows,
            step_tokens=settings.max_step_tokens or max(rows, 2048 if cuda else 512),
            adapter_mb=settings.adapter_memory_mb or (4096 if cuda else 512),
        )


def kv_memory_mb(settings: Settings, device: torch.device) -> int:
    """MiB for keys and values: the setting, or on a GPU a share of the free memory."""
    if settings.kv_memory_mb:
        return settings.kv_memory_mb
    if device.type != "cuda":
        return 512
    free, _ = torch.cuda.mem_get_info(device)
    return max(int(free * _SHARE_OF_FREE) // _MIB, 1)
