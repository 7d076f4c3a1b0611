"""Device memory for adapters' vectors: rows of any length in one tensor, each from a page on.

Knows no adapter and no method. Which pages are free is `server.adapters.memory.pages`'s to say. All
methods share the memory: a row is read only through the layout that it was packed by.
"""

from collections.abc import Mapping, Sequence
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from server.adapters.memory.layouts import PAGE, RowLayout
from server.adapters.memory.side_copies import SideCopies
from server.adapters.methods.method import Run
from server.adapters.methods.row_shares import Shares

ZERO_PAGE: Final = 0
"""A row of zeros begins here: what the base model's tokens read."""


class Bank:
    """`pages` pages of memory, behind a row of zeros as long as `zeros` lays out.

    `memory` [entries] is all of it, at an address that stays. What was never written holds whatever
    the memory held; it is written before it is read. Only the engine's thread touches a bank.
    """

    def __init__(
        self, zeros: RowLayout, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.first_page = zeros.pages
        self._pages = zeros.pages + pages
        self._dtype = dtype
        self._device = device
        self.memory = torch.empty(self._pages * PAGE, dtype=dtype, device=device)
        self.memory[: self.first_page * PAGE].zero_()
        self._side = SideCopies(device) if device.type == "cuda" else None
        self._views: WeakKeyDictionary[RowLayout, dict[tuple[str, int], dict[str, Tensor]]] = (
            WeakKeyDictionary()
        )

    def write(self, page: int, row: Tensor) -> None:
        """Put a row there. On CUDA it is on its way until a step begins that reads it."""
        if page < self.first_page:
            raise ValueError(f"page {page} is the base model's and stays zero")
        start = page * PAGE
        room = self.memory[start : start + len(row)]
        if self._side is None:
            room.copy_(row)
        else:
            self._side.copy(room, row, range(page, page - (-len(row) // PAGE)))

    def begin_step(self, rows: Sequence[range]) -> None:
        """What is launched from here on, until the next call, reads the rows of these pages only.

        For CUDA: a step that is not begun may read what a row overwrote.
        """
        if self._side is not None:
            self._side.begin_step(rows)

    def layer(self, layout: RowLayout, path: str, rank: int) -> dict[str, Tensor]:
        """One layer's vectors [pages, *shape at rank]: views, indexed by a row's first page."""
        of_layout = self._views.setdefault(layout, {})
        views = of_layout.get((path, rank))
        if views is None:
            # The last row that could begin is the last that still ends inside the memory.
            starts = self._pages - layout.pages + 1
            views = of_layout[path, rank] = layout.views(self.memory, starts, path, rank)
        return views


class BankRows:
    """`server.adapters.methods.method.Rows` over a bank: gathered when first read.

    `keep` holds what was gathered for later steps with the same rows; otherwise it lives only as
    long as its layer runs.
    """

    __slots__ = ("_keep", "_kept", "_stored", "rows", "runs")

    shares: Shares | None = None

    def __init__(
        self, stored: Mapping[str, Tensor], rows: Tensor, runs: Sequence[Run], *, keep: bool
    ) -> None:
        self.rows = rows
        self.runs = runs
        self._stored = stored
        self._keep = keep
        self._kept: dict[str, Tensor] = {}

    def stored(self, name: str) -> Tensor:
        return self._stored[name]

    def per_token(self, name: str) -> Tensor:
        gathered = self._kept.get(name)
        if gathered is None:
            gathered = self._stored[name].index_select(0, self.rows)
            if self._keep:
                self._kept[name] = gathered
        return gathered
