"""The tensors that a group's kernels read of a step; they are refilled for the next. No kernels."""

import numpy as np
import torch
from torch import Tensor

from server.adapters.batch.fused_plan import FusedGroup
from server.adapters.kernels.segments import Segments, capacity_for, segment_table
from server.adapters.methods.method import KernelFamily


class GroupInputs:
    """The inputs of one group.

    Attributes:
        pages: int64 [capacity], of each token; 0: the token is not the group's. For a method
            without kernels int64 [padded_tokens], of its own tokens alone.
        segments: the same by adapter, for methods whose matrices are adapters' own.
        members: int64 [padded_tokens], which tokens those are.
        real: bool [padded_tokens, 1], not padding.

    Args:
        capacity: tokens of the step, padding included.
        segments: adapters' runs of tokens that there is room for; see `capacity_for`.
    """

    def __init__(
        self, group: FusedGroup, capacity: int, segments: int, device: torch.device
    ) -> None:
        self._without_kernels = group.without_kernels is not None
        self.pages = torch.zeros(group.padded_tokens or capacity, dtype=torch.int64, device=device)
        self.segments: Segments | None = None
        if self._without_kernels:
            self.members = torch.zeros(group.padded_tokens, dtype=torch.int64, device=device)
            self.real = torch.zeros(group.padded_tokens, 1, dtype=torch.bool, device=device)
        elif group.kernels is KernelFamily.LOW_RANK:
            self.segments = Segments.of((), segments, device)

    @classmethod
    def of(cls, group: FusedGroup, pages: np.ndarray, device: torch.device) -> "GroupInputs":
        """Those of one step."""
        inputs = cls(group, len(pages), capacity_for(len(pages), len(np.unique(pages))), device)
        inputs.fill(pages)
        return inputs

    def fill(self, pages: np.ndarray) -> None:
        """Take the pages of a step; tokens beyond them are the base's."""
        if self._without_kernels:
            self._fill_members(pages)
            return
        padded = np.zeros(len(self.pages), dtype=np.int64)
        padded[: len(pages)] = pages
        refill(self.pages, padded)
        if self.segments is not None:
            refill(self.segments.table, segment_table(pages, self.segments.capacity))

    def _fill_members(self, pages: np.ndarray) -> None:
        """Padding reads the first token's row: the row of zeros may be too short for the method."""
        tokens = np.flatnonzero(pages)
        members = np.full(len(self.members), tokens[0])
        members[: len(tokens)] = tokens
        refill(self.members, members)
        refill(self.pages, pages[members])
        refill(self.real, np.arange(len(members))[:, None] < len(tokens))


def refill(tensor: Tensor, numbers: np.ndarray) -> None:
    """Overwrite a tensor without making the host wait."""
    source = torch.from_numpy(numbers)
    tensor.copy_(source.pin_memory() if tensor.is_cuda else source, non_blocking=True)
