"""Finds the least weight that top_k and top_p keep, one program a row. Knows no logits, no tokens.

Floats that are not negative sort as their bits do. So 15 passes over a row, two bits each, find the
largest threshold at and above which there is enough: enough tokens for top_k, enough mass for
top_p. Nothing is sorted, and the host waits for nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
_WARPS = 8


def sampling_threshold(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The least weight that top_k and top_p keep, float32 [rows].

    Plain reference: `server.engine.sampler.threshold_by_rank`.

    Args:
        weights: float32 [rows, vocab], inner stride 1, not negative, the largest of a row 1.
        top_k: float64 [rows], 0 for all. top_p: float64 [rows].
    """
    rows, vocab = weights.shape
    least = torch.empty(rows, dtype=torch.float32, device=weights.device)
    _threshold_kernel[(rows,)](
        weights, top_k.contiguous(), top_p.contiguous(), least, weights.stride(0), vocab,
        BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return least


@triton.jit
def _threshold_kernel(
    weights_ptr, top_k_ptr, top_p_ptr, least_ptr, stride, vocab, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    weights_ptr += row * stride
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    least = tl.full((), 0, tl.int32)
    whole = tl.full((), 0, tl.float64)
    if (top_k > 0) & (top_k < vocab):
        least = _search(weights_ptr, top_k, vocab, BLOCK, True)
        # Of the tokens whose weight is the threshold, count only as many as top_k allows.
        number = _above(weights_ptr, least + 1, vocab, BLOCK, True)
        edge = least.to(tl.float32, bitcast=True).to(tl.float64)
        whole = _above(weights_ptr, least + 1, vocab, BLOCK, False) + (top_k - number) * edge
    else:
        whole = _above(weights_ptr, least, vocab, BLOCK, False)
    if top_p < 1:  # at 1, rounding could cut off the last tokens
        least = tl.maximum(least, _search(weights_ptr, top_p * whole, vocab, BLOCK, False))
    least = tl.minimum(least, 0x3F800000)  # the bits of 1, which is always kept
    tl.store(least_ptr + row, least.to(tl.float32, bitcast=True))


@triton.jit
def _search(weights_ptr, enough, vocab, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """The largest bits below 2^30 at and above which there is `enough`."""
    low = tl.full((), 0, tl.int32)
    for turn in range(15):
        step = 1 << (28 - 2 * turn)
        first = tl.zeros((BLOCK,), tl.float64)
        second = tl.zeros((BLOCK,), tl.float64)
        third = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, vocab, BLOCK):
            bits, amount = _tile(weights_ptr, start, vocab, BLOCK, COUNT)
            first += tl.where(bits >= low + step, amount, 0.0)
            second += tl.where(bits >= low + 2 * step, amount, 0.0)
            third += tl.where(bits >= low + 3 * step, amount, 0.0)
        passed = (tl.sum(first) >= enough).to(tl.int32)
        passed += (tl.sum(second) >= enough).to(tl.int32)
        passed += (tl.sum(third) >= enough).to(tl.int32)
        low += step * passed
    return low


@triton.jit
def _above(weights_ptr, least, vocab, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """The number or the mass of the weights whose bits are at least `least`."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, vocab, BLOCK):
        bits, amount = _tile(weights_ptr, start, vocab, BLOCK, COUNT)
        total += tl.where(bits >= least, amount, 0.0)
    return tl.sum(total)


@triton.jit
def _tile(weights_ptr, start, vocab, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    weight = tl.load(weights_ptr + at, mask=at < vocab, other=-1.0)  # with bits below all
    bits = weight.to(tl.int32, bitcast=True)
    if COUNT:
        return bits, tl.full((BLOCK,), 1.0, tl.float64)
    else:
        return bits, weight.to(tl.float64)
