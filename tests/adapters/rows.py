"""`Rows`, linears and bases for tests of one method, without a bank or a model."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from server.adapters.methods.method import BasisPair, BasisSize, Matrices, Run
from server.adapters.methods.row_shares import Shares
from server.bases.model import TargetLinear


def bare_linear(in_features: int, out_features: int, path: str = "x") -> TargetLinear:
    """What methods read of a linear: its shape."""
    return TargetLinear(path, torch.nn.Identity(), in_features, out_features)


def made_pair(matrices: Matrices, size: BasisSize, width: int, dtype: torch.dtype) -> BasisPair:
    """As the server makes it, `width` wide."""
    return BasisPair(
        matrices.a(size.a_rank, width, dtype), matrices.b(width, size.b_rank, dtype).t()
    )


class StoredRows:
    """Tokens that read rows of what is stored: `picks[t]` is token t's."""

    shares: Shares | None = None

    def __init__(self, picks: Sequence[int], **stored: Tensor) -> None:
        self.rows: Tensor | None = torch.tensor(picks)
        self.runs: list[Run] = []
        for row, same in groupby(picks):
            start = self.runs[-1].stop if self.runs else 0
            self.runs.append(Run(row, start, start + len(list(same))))
        self._stored = stored

    def stored(self, name: str) -> Tensor:
        return self._stored[name]

    def per_token(self, name: str) -> Tensor:
        assert self.rows is not None
        return self._stored[name][self.rows]


class TrainedRows:
    """Every token reads the same tensors, as in training."""

    rows: Tensor | None = None
    runs: Sequence[Run] = ()
    shares: Shares | None = None

    def __init__(self, **stored: Tensor) -> None:
        self._stored = stored

    def stored(self, name: str) -> Tensor:
        return self._stored[name]

    per_token = stored
