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

EARLY = 1
"""Where the device can, the next kernel may begin with this one (1), or once this one need not wait
any more (2); 0: when it has ended."""


def early(device: torch.device) -> int:
    """How early kernels are launched on the device; 0: not early."""
    return EARLY if _able(device) else 0


@cache
def _able(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def wait(EARLY: tl.constexpr):
    """Go on when all kernels before this one have ended, and what they wrote is seen."""
    if EARLY > 0:
        tl.extra.cuda.gdc_wait()
    if EARLY == 2:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def let_next_begin(EARLY: tl.constexpr):
    """The next kernel may take what room is left on the device, as soon as all programs say so."""
    if EARLY == 1:
        tl.extra.cuda.gdc_launch_dependents()
