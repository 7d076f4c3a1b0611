"""Made-up adapters' rows in device memory, and who asks for which."""

import torch
from torch import Tensor

from server.adapters.memory.layouts import PAGE
from tests.engine.kernels.near import DEVICE, noise

_ALIGNMENT = 16


class Rows:
    """Rows of `width` entries on whole pages; a row of nan lies on page 0, for nobody may read it.

    Vectors are given places one after another, as `RowLayout` gives them.
    """

    def __init__(self) -> None:
        self.width = 0

    def place(self, entries: int) -> int:
        start = self.width
        self.width = -(-(start + entries) // _ALIGNMENT) * _ALIGNMENT
        return start

    def memory(self, adapters: int, dtype: torch.dtype) -> tuple[Tensor, list[int]]:
        """Random rows, and the page that each adapter begins on."""
        each = -(-self.width // PAGE)
        memory = noise((adapters + 1) * each * PAGE, dtype=dtype, seed=9)
        memory[: each * PAGE] = torch.nan
        return memory, [each * (1 + adapter) for adapter in range(adapters)]


def asked(popularity: str, tokens: int, first_pages: list[int]) -> Tensor:
    """The page of each token, int64 [tokens]."""
    adapters = len(first_pages)
    if popularity == "base":
        return torch.zeros(tokens, dtype=torch.int64, device=DEVICE)
    generator = torch.Generator().manual_seed(tokens)
    spread = torch.rand(tokens, generator=generator)
    chosen = {
        "identical": torch.zeros(tokens),
        "distinct": torch.arange(tokens) % adapters,
        "skewed": (spread**4 * adapters).floor(),
        "mixed": (spread * adapters).floor(),
    }[popularity].long()
    pages = torch.tensor(first_pages)[chosen]
    if popularity == "mixed":
        pages[torch.rand(tokens, generator=generator) < 0.4] = 0
    return pages.to(DEVICE)
