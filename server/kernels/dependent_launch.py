"""A kernel may begin before the one before it in the stream has ended (Hopper and later).

That is programmatic dependent launch. Until `wait` a kernel may read only what no kernel of the
stream writes: weights, adapters' rows, a step's pages. Whatever it writes comes after. All programs
must wait, those with nothing to do as well: whoever comes next relies on it that a kernel has ended
after everything before it. Knows no kernel.
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
    """Go on when all kernels before this one have ended, and what they wrote is seen."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_begin(EARLY: tl.constexpr):
    """The next kernel may take what room is left on the device, as soon as all programs say so."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
