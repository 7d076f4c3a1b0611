"""Chooses sizes that the settings leave open (0): rows, tokens and memory. Knows no engine."""

from dataclasses import dataclass
from typing import Final

import torch

from server.bases.model import BaseModel
from server.config import Settings
from server.engine.kv_cache import token_bytes

_MIB = 2**20
# Of the memory that weights and adapters leave free; the worker trains in the rest.
_SHARE_OF_FREE: Final = 0.6
# On a CPU: this many full contexts, or four times as many of the usual quarter, are more than its
# cores answer well at once. Memory beyond that would lie idle.
_CPU_CONTEXTS: Final = 16
_CPU_MOST_MIB: Final = 512


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


def context_of(settings: Settings, base: BaseModel) -> int:
    """Tokens of context: the base's, or fewer if the settings say so."""
    return min(settings.max_context or base.max_context, base.max_context)


def kv_memory_mb(settings: Settings, base: BaseModel) -> int:
    """MiB for keys and values: the setting, or a share of a GPU's free memory.

    On a CPU it is what 16 full contexts of the base take, but at most 512.
    """
    if settings.kv_memory_mb:
        return settings.kv_memory_mb
    if base.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(base.device)
        return max(int(free * _SHARE_OF_FREE) // _MIB, 1)
    block = settings.kv_block_tokens
    tokens = _CPU_CONTEXTS * -(-context_of(settings, base) // block) * block
    return min(-(-tokens * token_bytes(base) // _MIB), _CPU_MOST_MIB)
