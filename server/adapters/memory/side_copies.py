"""Copies rows to device memory while steps run that read other rows (CUDA).

Knows no adapters: memory is pages, and a row is a range of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


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

    def copy(self, room: Tensor, row: Tensor, pages: range) -> None:
        """Copy a row of pinned memory into its room, which is `pages`."""
        if any(_overlap(pages, read) for read in self._read):
            self._side.wait_stream(torch.cuda.current_stream(self._device))
        else:
            self._side.wait_event(self._before)
        with torch.cuda.stream(self._side):
            room.copy_(row, non_blocking=True)
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
