"""What a launch does for its neighbours in the stream, while it waits for memory itself.

A decode step is some four hundred launches of a few microseconds, and memory is idle between two
products: there a kernel waits for a chain of loads, and then for the next one to begin.

`early` is programmatic dependent launch (Hopper and later): a kernel may begin before the one
before it has ended. Until `wait` it may read only what no kernel of the stream writes: weights,
adapters' rows, a step's pages. All programs must wait, also those with nothing to do, for whoever
comes next relies on a kernel having ended after all that came before it.

`Ahead` is memory that is read next: it is asked for into the L2 cache, and nobody waits for it.
Knows no kernel.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

EARLY = False
"""Whether kernels are launched early where the device can."""
AHEAD_BYTES = 0
"""How much of the next weight a launch asks for."""
OWN_BYTES = 0
"""How much of adapters' B the launch before its own asks for."""
LATER = False
"""Whether programs ask for what others read when they have ended."""

_CHUNK = 2048  # bytes of one request
_RESIDENT = 132 * 4  # programs that run at once
_MOST_TOKENS = 256  # with more a product is bound by arithmetic, and memory has time


class Ahead(NamedTuple):
    """Chunks of a tensor, spread evenly: what a launch of `programs` asks for.

    `stride` and `start` are in bytes; no `chunks`: nothing.
    """

    memory: Tensor
    start: int
    stride: int
    chunks: int


def ahead_of(
    weight: Tensor | None, like: Tensor, programs: int, warps: int, second: bool = False
) -> Ahead:
    """What a launch that writes for len(like) tokens asks for.

    Args:
        weight: contiguous, read by the next product; None: nothing is known of it.
        like: stands for it where nothing is asked for.
        second: the chunks between those that another launch has asked for already.
    """
    if weight is None or not AHEAD_BYTES or len(like) > _MOST_TOKENS or not _able(weight.device):
        return Ahead(like, 0, 0, 0)
    chunks = weight.nbytes // _CHUNK
    wanted = min(AHEAD_BYTES // _CHUNK, chunks // 2, programs * warps * 32)
    if wanted == 0:
        return Ahead(like, 0, 0, 0)
    # An odd number, so that all parts of the rows come, whose length is mostly even: a product
    # that is split along them would wait for the part that was left out.
    stride = (chunks // wanted - 1) | 1
    between = wanted if stride == 1 else stride // 2
    start = between if second else 0
    return Ahead(weight, start * _CHUNK, stride * _CHUNK, wanted)


def segments_ahead(each: int, like: Tensor) -> int:
    """Of how many segments, each with so many bytes, the launch before asks for all."""
    if not OWN_BYTES or not each or len(like) > _MOST_TOKENS or not _able(like.device):
        return 0
    return OWN_BYTES // each


def distance(programs: int, device: torch.device) -> int:
    """How many segments later one is whose programs follow on those that run now; 0: do not ask.

    Args:
        programs: of one segment.
    """
    return -(-_RESIDENT // programs) if LATER and _able(device) else 0


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


@triton.jit
def ask(ahead, start, stride, count, program, programs, THREADS: tl.constexpr):
    """This program's share of an `Ahead`: at most one request of each thread."""
    if count > 0:
        thread = tl.arange(0, THREADS)
        # Requests of one warp are made one after another: each warp takes some.
        turn = thread % 32 * (THREADS // 32) + thread // 32
        chunk = turn * programs + program
        at = ahead.to(tl.int64) + start + chunk.to(tl.int64) * stride
        _request(at, tl.full([THREADS], 2048, tl.int32), chunk < count)


@triton.jit
def ask_piece(at, size, THREADS: tl.constexpr):
    """`size` bytes from pointer `at` on, both multiples of 16: at most a request of each thread."""
    if size > 0:
        each = tl.cdiv(tl.cdiv(size, THREADS), 2048) * 2048
        thread = tl.arange(0, THREADS)
        first = (thread % 32 * (THREADS // 32) + thread // 32) * each
        left = tl.minimum(size - first, each)
        _request(at.to(tl.int64) + first, left, left > 0)


@triton.jit
def ask_entries(at, count, THREADS: tl.constexpr):
    """`count` entries from pointer `at` on, which lies on 16 bytes; fewer where they end oddly."""
    BYTES: tl.constexpr = at.dtype.element_ty.primitive_bitwidth // 8
    ask_piece(at, count * BYTES // 16 * 16, THREADS)


@triton.jit
def ask_rows(at, width, span, rows, THREADS: tl.constexpr):
    """`span` entries of each of up to THREADS rows of `width`, which are multiples of 16 bytes."""
    BYTES: tl.constexpr = at.dtype.element_ty.primitive_bitwidth // 8
    thread = tl.arange(0, THREADS)
    row = thread % 32 * (THREADS // 32) + thread // 32
    asked = at.to(tl.int64) + row.to(tl.int64) * width * BYTES
    size = tl.full([THREADS], 0, tl.int32) + span * BYTES
    _request(asked, size, (row < rows) & (span > 0))


@triton.jit
def _request(at, size, wanted):
    tl.inline_asm_elementwise(
        """{
        .reg .pred asked;
        setp.ne.s32 asked, $3, 0;
        @asked cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r,r",
        [at, size, wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
