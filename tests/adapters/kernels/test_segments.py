"""Tokens sorted into segments, against what a segment promises."""

import numpy as np
import pytest
import torch

from server.adapters.kernels.segments import TOKENS_EACH, Segments, capacity_for, segment_table


@pytest.mark.parametrize("adapters", [1, 3, 70])
@pytest.mark.parametrize("tokens", [1, 16, 17, 200])
def test_every_adapted_token_is_in_one_segment_of_its_adapter(adapters: int, tokens: int) -> None:
    pages = 5 * np.random.default_rng(tokens).integers(0, adapters + 1, tokens)
    table = segment_table(pages, capacity_for(tokens, adapters))
    assert table.dtype == np.int32
    rows = table[:, 1:]
    assert sorted(rows[rows >= 0].tolist()) == np.flatnonzero(pages).tolist()
    for page, *members in table.tolist():
        filled = [row for row in members if row >= 0]
        assert {int(pages[row]) for row in filled} == ({page} if page else set())
        assert members[: len(filled)] == filled
    counts = np.unique(pages[pages > 0], return_counts=True)[1]
    assert np.count_nonzero(table[:, 0]) == sum(-(-counts // TOKENS_EACH))


def test_no_token_needs_no_segment() -> None:
    assert segment_table([], 0).shape == (0, 1 + TOKENS_EACH)
    assert not segment_table([0, 0, 0], 2)[:, 0].any()


def test_too_many_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens of 1 adapters need 2 segments"):
        segment_table([7] * 17, 1)


def test_a_batch_as_a_tensor() -> None:
    segments = Segments.of([3, 0, 3, 9], 4, "cpu")
    assert segments.capacity == 4
    assert torch.equal(segments.table[:, 0], torch.tensor([3, 9, 0, 0], dtype=torch.int32))
    assert segments.table[:2, 1:4].tolist() == [[0, 2, -1], [3, -1, -1]]
