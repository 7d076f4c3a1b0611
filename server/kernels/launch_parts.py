"""Assigns a program to one of several linears that share a launch, since they read the same input.

A part is (column, out_features, offset of its first vector, offset of its second). The numbers are
arguments of the launch, not constants, because they differ from layer to layer. Knows no method.
"""

from collections.abc import Iterable
from typing import Protocol

import triton
import triton.language as tl


class Part(Protocol):
    """The columns of y that belong to one linear."""

    @property
    def out_features(self) -> int: ...


# On the host, where triton's own two of these cost microseconds a call.
def cdiv(count: int, each: int) -> int:
    """The quotient `count / each`, rounded up."""
    return -(-count // each)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`; `count` is at least 1."""
    return 1 << (count - 1).bit_length()


def tiles_over(parts: Iterable[Part], columns: int) -> int:
    """How many tiles of `columns` columns cover all parts; no tile covers two parts."""
    return sum(cdiv(part.out_features, columns) for part in parts)


@triton.jit
def part_of(tile, parts, BLOCK_N: tl.constexpr):
    """The part that this tile belongs to.

    Returns: its index, its four numbers, and the tile's first column, counted from the part's.
    """
    index = 0
    column, out_features, first_at, second_at = parts[0]
    here = tile
    behind = tl.cdiv(out_features, BLOCK_N)
    for i in tl.static_range(1, len(parts)):
        mine = tile >= behind
        index = tl.where(mine, i, index)
        column = tl.where(mine, parts[i][0], column)
        out_features = tl.where(mine, parts[i][1], out_features)
        first_at = tl.where(mine, parts[i][2], first_at)
        second_at = tl.where(mine, parts[i][3], second_at)
        here = tl.where(mine, tile - behind, here)
        behind += tl.cdiv(parts[i][1], BLOCK_N)
    return index, column, out_features, first_at, second_at, here * BLOCK_N
