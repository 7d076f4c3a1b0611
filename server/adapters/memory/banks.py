"""Device memory for adapters' vectors: one tensor, with rows of any length that begin on pages.

Knows no adapter and no method. `server.adapters.memory.pages` knows which pages are free. All
methods share the memory: a row is read only through the layout that it was packed by.
"""

from collections.abc import Mapping, Sequence
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from server.adapters.memory.layouts import PAGE, RowLayout
from server.adapters.methods.method import Run
from server.adapters.methods.row_shares import Shares

ZERO_PAGE: Final = 0
"""A row of zeros begins here: what the base model's tokens read."""


class Bank:
    """`pages` pages of memory, behind a row of zeros as long as `zeros` lays out.

    `memory` [entries] is all of it; its address never changes. It is not cleared: entries are
    written before they are read. Only the engine's thread uses a bank.
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
        """Copy a row there. On CUDA the copy may last until a step begins that reads the row."""
        if page < self.first_page:
            raise ValueError(f"page {page} is the base model's and stays zero")
        start = page * PAGE
        destination = self.memory[start : start + len(row)]
        if self._side is None:
            destination.copy_(row)
        else:
            self._side.copy(destination, row, range(page, page - (-len(row) // PAGE)))

    def begin_step(self, rows: Sequence[range]) -> None:
        """Announce a step: until the next call, launches read the rows on these pages only.

        On CUDA a step that is not announced may read a row while it is overwritten.
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

    With `reuse`, gathered vectors are kept for later steps with the same rows; otherwise they are
    freed as soon as their layer has run.
    """

    __slots__ = ("_gathered", "_reuse", "_stored", "rows", "runs")

    shares: Shares | None = None

    def __init__(
        self, stored: Mapping[str, Tensor], rows: Tensor, runs: Sequence[Run], *, reuse: bool
    ) -> None:
        self.rows = rows
        self.runs = runs
        self._stored = stored
        self._reuse = reuse
        self._gathered: dict[str, Tensor] = {}

    def stored(self, name: str) -> Tensor:
        return self._stored[name]

    def per_token(self, name: str) -> Tensor:
        gathered = self._gathered.get(name)
        if gathered is None:
            gathered = self._stored[name].index_select(0, self.rows)
            if self._reuse:
                self._gathered[name] = gathered
        return gathered


class SideCopies:
    """Copies on a stream of their own; for the one thread that launches steps on its current one.

    A copy begins once the steps have run that read what it overwrites, and what else was launched
    before them. A step waits for the copies of the rows that it reads and for no other. Only the
    device waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)
        # Recorded after all that was launched before the last step. Recorded at once as well: the
        # allocator may have taken the memory from work that still runs.
        self._before = torch.cuda.Event()
        self._before.record(torch.cuda.current_stream(device))
        self._read: Sequence[range] = ()  # by the last step
        self._arriving: dict[int, torch.cuda.Event] = {}  # by the first page of a row

    def copy(self, destination: Tensor, row: Tensor, pages: range) -> None:
        """Copy a row of pinned memory into its destination, which is `pages`."""
        if any(_overlap(pages, read) for read in self._read):
            self._side.wait_stream(torch.cuda.current_stream(self._device))
        else:
            self._side.wait_event(self._before)
        with torch.cuda.stream(self._side):
            destination.copy_(row, non_blocking=True)
        self._arriving[pages.start] = self._side.record_event()

    def begin_step(self, rows: Sequence[range]) -> None:
        """Announce a step: until the next call, launches read these rows and no others."""
        main = torch.cuda.current_stream(self._device)
        self._before.record(main)  # copies that wait for it keep waiting for its earlier point
        self._read = rows
        if not self._arriving:
            return
        for pages in rows:
            arrived = self._arriving.pop(pages.start, None)
            if arrived is not None:
                main.wait_event(arrived)


def _overlap(left: range, right: range) -> bool:
    return left.start < right.stop and right.start < left.stop
