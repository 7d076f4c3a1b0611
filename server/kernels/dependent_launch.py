"""Lets a kernel begin before the one before it in the stream has ended (Hopper and later).

That is programmatic dependent launch. Before `wait` a kernel may read only what no kernel of the
stream writes: weights, adapters' rows, a step's pages. It may write only after `wait`. All programs
must wait, those with nothing to do as well: the next kernel relies on it that when this one has
ended, so have all before it. Knows no kernel.
"""

from functools import cache

import torch
import triton
import triton.language as tl

EARLY = True
"""Whether kernels are launched early where the device can."""


def early(device: torch.device) -> bool:
    """Whether kernels on the device are launched early."""
    return EARLY and _able(device)


@cache
def _able(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def wait(EARLY: tl.constexpr):
    """Wait until all kernels before this one have ended and their writes are visible."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_begin(EARLY: tl.constexpr):
    """Let the next kernel use what is free, once all programs of this one have called it."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
