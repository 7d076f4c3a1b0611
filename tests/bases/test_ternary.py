"""Ternary specs and the streams of single layers, against the pure-Python Philox."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.bases import seeded_matrices
from server.bases.seeded_matrices import STREAM_A, STREAM_B, Basis, reference_bytes, ternary_spec
from tests.bases import golden_philox


def golden(
    stream: int, row: int, column: int, height: int, width: int, threshold: int | None, seed: int
) -> list[list[float]]:
    return [
        golden_philox.row_entries(seed, stream, row + i, column, width, threshold)
        for i in range(height)
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.sampled_from((STREAM_A, STREAM_B)),
    st.one_of(st.integers(0, 40_000), st.integers(0, 2**32 - 8)),
    st.one_of(st.integers(0, 200), st.integers(0, 2**40)),
    st.integers(0, 6),
    st.integers(0, 130),
    st.sampled_from(seeded_matrices.DTYPES),
    st.sampled_from((1, 2, 7, 21, 43, 127)),
)
def test_any_ternary_tile_made_alone_equals_the_golden_entries(
    seed: int,
    stream: int,
    row: int,
    column: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    threshold: int,
) -> None:
    basis = Basis(seed, f"philox4x64-10/t{threshold}/v1")
    made = basis.tile(stream, range(row, row + height), slice(column, column + width), dtype)
    assert made.dtype == dtype
    assert made.tolist() == golden(stream, row, column, height, width, threshold, seed)


@pytest.mark.parametrize("threshold", range(1, 128))
def test_every_byte_becomes_its_sign_in_every_dtype(threshold: int) -> None:
    sample = torch.from_numpy(reference_bytes(5, STREAM_A, 0, 8192)).long()
    assert sample.unique().numel() == 256, "the sample must show every byte"
    expected = (sample > 255 - threshold).long() - (sample < threshold).long()
    for dtype in seeded_matrices.DTYPES:
        made = Basis(5, f"philox4x64-10/t{threshold}/v1").a(1, 8192, dtype)[0]
        assert torch.equal(made.double(), expected.double()), dtype


@pytest.mark.parametrize(
    ("sparsity", "threshold"),
    [(3, 43), (6, 21), (384**0.5, 7), (4096**0.5, 2), (128, 1), (1e6, 1), (1.01, 127)],
)
def test_the_nearest_whole_threshold_stands_for_a_sparsity(sparsity: float, threshold: int) -> None:
    assert ternary_spec(sparsity) == f"philox4x64-10/t{threshold}/v1"


@pytest.mark.parametrize("sparsity", [1.0, 1.003, 0.0, -3.0, float("inf"), float("nan")])
def test_a_sparsity_without_zeros_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match=f"sparsity {sparsity} .* above 1.01"):
        ternary_spec(sparsity)


@pytest.mark.parametrize("sparsity", [3, 6, 384**0.5])
def test_ternary_entries_are_as_frequent_as_their_sparsity_says(sparsity: float) -> None:
    basis = Basis(0, ternary_spec(sparsity))
    entries = basis.a(512, 512, torch.float32)
    n = entries.numel()
    assert entries.unique().tolist() == [-1, 0, 1]
    for sign in (-1, 1):
        share, expected = (entries == sign).sum().item() / n, basis.variance / 2
        assert abs(share - expected) < 5 * (expected / n) ** 0.5
        assert expected == pytest.approx(1 / (2 * sparsity), rel=0.08), "the nearest of 127"
    assert abs(entries.square().mean().item() - basis.variance) < 5 * (basis.variance / n) ** 0.5


def test_a_layer_reads_streams_of_its_own() -> None:
    shared = Basis(7).a(3, 40, torch.float32), Basis(7).b(40, 3, torch.float32)
    for layer, streams_of_it in ((0, (2, 3)), (1, (4, 5)), (2**31 - 2, (2**32 - 2, 2**32 - 1))):
        own = Basis(7, layer=layer)
        a, b = own.a(3, 40, torch.float32), own.b(40, 3, torch.float32)
        assert a.tolist() == golden(streams_of_it[0], 0, 0, 3, 40, None, 7)
        assert b.tolist() == golden(streams_of_it[1], 0, 0, 40, 3, None, 7)
        assert not torch.equal(a, shared[0])
        assert not torch.equal(b, shared[1])


@pytest.mark.parametrize("layer", [-1, 2**31 - 1])
def test_a_layer_without_a_stream_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=str(layer)):
        Basis(0, layer=layer)
