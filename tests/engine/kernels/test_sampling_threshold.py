"""The weights that top_k and top_p keep, against the plain form, which ranks them."""

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from server.engine.kernels.sampling_threshold import sampling_threshold
from server.engine.sampler import threshold_by_rank
from tests.engine.kernels.near import DEVICE, MARKS

pytestmark = MARKS


def made(seed: int, rows: int, vocab: int, equals: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, flat or peaked, with many equal ones or none; every kind of bound."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.choice([0.01, 1, 30]), (rows, vocab))
    logits = logits.round() if equals else logits
    weights = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float32)
    top_k = rng.choice([0, 1, 3, vocab - 1, vocab, 10 * vocab], rows).astype(np.float64)
    top_p = rng.choice([0.0, 0.31, 0.9, 0.999, 1.0], rows)
    weights_on, k_on, p_on = (torch.from_numpy(it).to(DEVICE) for it in (weights, top_k, top_p))
    return weights_on, k_on, p_on


@pytest.mark.parametrize("seed", range(12 if DEVICE == "cuda" else 2))
@pytest.mark.parametrize("vocab", [2, 300, 2100])
@pytest.mark.parametrize("equals", [False, True])
def test_it_keeps_what_ranking_keeps(seed: int, vocab: int, equals: bool) -> None:
    weights, top_k, top_p = made(seed, 3, vocab, equals)
    least, expected = (
        sampling_threshold(weights, top_k, top_p),
        threshold_by_rank(weights, top_k, top_p),
    )
    # A bound may lie anywhere between two weights; which weights are kept may not differ.
    assert torch.equal(weights >= least[:, None], weights >= expected[:, None])


def test_a_row_of_nan_ends_and_spoils_no_other() -> None:
    weights, _, _ = made(0, 3, 50, False)
    weights[1] = torch.nan
    top_k = torch.full((3,), 4.0, dtype=torch.float64, device=DEVICE)
    top_p = torch.full((3,), 0.9, dtype=torch.float64, device=DEVICE)
    least = sampling_threshold(weights, top_k, top_p)
    some = torch.tensor([0, 2], device=DEVICE)
    expected = threshold_by_rank(weights[some], top_k[some], top_p[some])
    assert torch.equal(weights[some] >= least[some, None], weights[some] >= expected[:, None])


def test_a_view_into_wider_rows_is_read_where_it_lies() -> None:
    weights, top_k, top_p = made(1, 2, 300, False)
    wide = torch.ones(2, 512, device=DEVICE)
    wide[:, :300] = weights
    assert torch.equal(
        sampling_threshold(wide[:, :300], top_k, top_p), sampling_threshold(weights, top_k, top_p)
    )
