"""Sort a batch's tokens by adapter, so that an adapter's matrices are read once for many of them.

A segment is up to 16 tokens of one adapter. How many there are room for is fixed, so that a
captured graph can run over any batch. Knows no matrices and no kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOKENS_EACH: Final = 16  # the fewest rows that a product of tensor cores has


@dataclass(frozen=True, eq=False)
class Segments:
    """`table`, int32 [capacity, 1 + 16]: a page, then its tokens' rows; -1 is none.

    Rows stand from the left. The page of an unused segment is 0, which is no adapter's. A captured
    graph reads the same tensor in every step: another `segment_table` is copied into it.
    """

    table: Tensor

    @classmethod
    def of(
        cls, pages: Sequence[int] | NDArray[np.int64], capacity: int, device: torch.device | str
    ) -> "Segments":
        """The segments of tokens whose rows of memory begin on `pages`; 0 is in no segment."""
        return cls(torch.from_numpy(segment_table(pages, capacity)).to(device))

    @property
    def capacity(self) -> int:
        return len(self.table)


def capacity_for(tokens: int, adapters: int) -> int:
    """Segments that suffice for so many tokens of so many adapters, however they are spread."""
    return min(tokens, adapters + tokens // TOKENS_EACH)


def segment_table(pages: Sequence[int] | NDArray[np.int64], capacity: int) -> NDArray[np.int32]:
    """`Segments.table` on the host. Raises ValueError: more segments are needed than `capacity`."""
    page_of = np.asarray(pages, dtype=np.int64)
    table = np.full((capacity, 1 + TOKENS_EACH), -1, dtype=np.int32)
    table[:, 0] = 0
    rows = np.flatnonzero(page_of)
    rows = rows[np.argsort(page_of[rows], kind="stable")]
    adapters, first, counts = np.unique(page_of[rows], return_index=True, return_counts=True)
    nth = np.arange(len(rows)) - np.repeat(first, counts)  # among its adapter's tokens
    segment = np.cumsum(nth % TOKENS_EACH == 0) - 1
    needed = int(segment[-1]) + 1 if len(rows) else 0
    if needed > capacity:
        raise ValueError(
            f"{len(rows)} tokens of {len(adapters)} adapters need {needed} segments, there is "
            f"room for {capacity}: see capacity_for"
        )
    table[segment, 0] = page_of[rows]
    table[segment, 1 + nth % TOKENS_EACH] = rows
    return table
