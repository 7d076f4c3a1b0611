"""Which linear a program works for, where one launch serves several that read the same input.

Knows no method: a part is (column, out_features, where its first vector lies, where its second).
The numbers are arguments of the launch, not constants, for they differ from layer to layer.
"""

from collections.abc import Iterable
from typing import Protocol

import triton
import triton.language as tl


class Part(Protocol):
    """Columns of y that are one linear's."""

    @property
    def out_features(self) -> int: ...


# On the host, where triton's own two of these cost microseconds a call.
def cdiv(count: int, each: int) -> int:
    """How many `each` hold `count`."""
    return -(-count // each)


def power_of_two(count: int) -> int:
    """The smallest that is not below `count`, which is at least 1."""
    return 1 << (count - 1).bit_length()


def tiles_over(parts: Iterable[Part], columns: int) -> int:
    """How many tiles of `columns` columns cover all parts, none of them shared by two."""
    return sum(cdiv(part.out_features, columns) for part in parts)


@triton.jit
def part_of(tile, parts, BLOCK_N: tl.constexpr):
    """The part that owns this tile.

    Returns: its number, its four facts, and the tile's first column, counted from the part's.
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
