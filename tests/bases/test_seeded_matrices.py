"""The seeded matrices against an independent Philox, and the promises that adapters rest on."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from server.bases import seeded_matrices
from server.bases.seeded_matrices import (
    SPEC,
    STREAM_A,
    STREAM_B,
    Basis,
    reference_bytes,
    ternary_spec,
)
from server.errors import BasisMismatch
from tests.bases import golden_philox

HALF_OR_SINGLE = (torch.bfloat16, torch.float16, torch.float32)

seeds = st.integers(0, 2**64 - 1)
streams = st.sampled_from((STREAM_A, STREAM_B))
rows = st.one_of(st.integers(0, 40_000), st.integers(0, 2**32 - 8))
columns = st.one_of(st.integers(0, 200), st.integers(0, 2**40))
heights = st.integers(0, 6)
widths = st.integers(0, 130)
dtypes = st.sampled_from(HALF_OR_SINGLE)
SPECS = (SPEC, ternary_spec(3), ternary_spec(6), ternary_spec(384**0.5))
few = settings(max_examples=40, deadline=None)


def golden_tile(
    seed: int,
    stream: int,
    row: int,
    column: int,
    height: int,
    width: int,
    threshold: int | None = None,
) -> list[list[float]]:
    return [
        golden_philox.row_entries(seed, stream, row + i, column, width, threshold)
        for i in range(height)
    ]


def bits(entries: Tensor) -> bytes:
    return entries.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("counter", "key", "expected"), golden_philox.KNOWN_ANSWERS)
def test_the_golden_philox_meets_the_known_answers_of_its_authors(
    counter: golden_philox.Block, key: tuple[int, int], expected: golden_philox.Block
) -> None:
    assert golden_philox.philox4x64_10(counter, key) == expected


@pytest.mark.parametrize(
    ("seed", "stream", "row", "expected"),
    [
        (0, 0, 0, [155, 216, 228, 8, 100, 186, 244, 2]),
        (2310, 1, 7, [157, 95, 32, 85, 204, 86, 155, 141]),
    ],
)
def test_first_bytes_are_the_ones_the_spec_publishes(
    seed: int, stream: int, row: int, expected: list[int]
) -> None:
    """Published with the spec and met by the pure-Python Philox, so numpy is not its own judge."""
    assert list(golden_philox.row_bytes(seed, stream, row, 0, 8)) == expected
    assert reference_bytes(seed, stream, row, 8).tolist() == expected


# numpy turns a list like [2**63, 1] into float64 unless told otherwise.
@example(2**63, STREAM_A, 1, 40)
@example(2**64 - 1, STREAM_B, 2**32 - 1, 40)
@few
@given(seeds, streams, rows, widths)
def test_reference_equals_the_golden_philox(seed: int, stream: int, row: int, count: int) -> None:
    expected = golden_philox.row_bytes(seed, stream, row, 0, count)
    assert reference_bytes(seed, stream, row, count).tobytes() == expected


@few
@given(seeds, streams, rows, columns, heights, widths, dtypes)
def test_any_tile_made_alone_equals_the_golden_entries(
    seed: int, stream: int, row: int, column: int, height: int, width: int, dtype: torch.dtype
) -> None:
    made = Basis(seed).tile(stream, range(row, row + height), slice(column, column + width), dtype)
    assert made.dtype == dtype
    assert made.shape == (height, width)
    assert made.tolist() == golden_tile(seed, stream, row, column, height, width)


@few
@given(
    seeds,
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(1, 200),
    st.integers(0, 200),
    st.sampled_from(SPECS),
    st.sampled_from((None, 0, 5)),
)
def test_growth_of_rows_columns_and_rank_keeps_every_prefix(
    seed: int,
    rank: int,
    more_rank: int,
    features: int,
    more_features: int,
    spec: str,
    layer: int | None,
) -> None:
    basis = Basis(seed, spec, layer)
    big_rank, big_features = rank + more_rank, features + more_features
    small_a = basis.a(rank, features, torch.bfloat16)
    small_b = basis.b(features, rank, torch.bfloat16)
    big_a = basis.a(big_rank, big_features, torch.bfloat16)
    big_b = basis.b(big_features, big_rank, torch.bfloat16)
    assert small_a.shape == (rank, features)
    assert small_b.shape == (features, rank)
    assert bits(small_a) == bits(big_a[:rank, :features])
    assert bits(small_b) == bits(big_b[:features, :rank])


@few
@given(
    seeds,
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 300),
    st.integers(0, 300),
    st.sampled_from(SPECS),
)
def test_a_tile_is_the_same_alone_as_cut_from_the_whole(
    seed: int, row: int, last_row: int, column: int, last_column: int, spec: str
) -> None:
    row, last_row = sorted((row, last_row))
    column, last_column = sorted((column, last_column))
    basis = Basis(seed, spec)
    whole = basis.b(60, 300, torch.float32)
    alone = basis.tile(STREAM_B, slice(row, last_row), range(column, last_column), torch.float32)
    assert bits(alone) == bits(whole[row:last_row, column:last_column])


def test_every_byte_becomes_the_same_exact_entry_in_every_dtype() -> None:
    sample = reference_bytes(5, STREAM_A, 0, 8192)
    assert set(sample.tolist()) == set(range(256)), "the sample must show every byte"
    expected = (2 * torch.from_numpy(sample).double() - 255) / 256
    for dtype in seeded_matrices.DTYPES:
        made = Basis(5).a(1, 8192, dtype)[0]
        assert torch.equal(made.double(), expected), dtype


@few
@given(seeds, heights, widths, st.sampled_from(SPECS))
def test_dtypes_agree_bit_for_bit_after_rounding_between_them(
    seed: int, height: int, width: int, spec: str
) -> None:
    single = Basis(seed, spec).a(height, width, torch.float32)
    for dtype in HALF_OR_SINGLE:
        narrow = Basis(seed, spec).a(height, width, dtype)
        assert bits(narrow) == bits(single.to(dtype))
        assert bits(narrow.float()) == bits(single)


@pytest.mark.parametrize(("spec", "threshold"), [(SPEC, None), ("philox4x64-10/t43/v1", 43)])
@pytest.mark.parametrize("chunk_bytes", [1, 33, 1000, 4096, 1 << 30])
def test_chunking_changes_no_bit(
    chunk_bytes: int, spec: str, threshold: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis = Basis(2310, spec)
    expected = torch.tensor(golden_tile(2310, STREAM_B, 3, 5, 50, 70, threshold))
    monkeypatch.setattr(seeded_matrices, "_CHUNK_BYTES", chunk_bytes)
    made = basis.tile(STREAM_B, range(3, 53), range(5, 75), torch.float32)
    assert torch.equal(made, expected)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_thread_count_changes_no_bit(set_threads: Callable[[int], None]) -> None:
    made = set()
    for count in (1, 2, 5):
        set_threads(count)
        made.add(bits(Basis(8).a(64, 9000, torch.bfloat16)))
    assert len(made) == 1


def test_threads_that_generate_at_once_do_not_disturb_each_other() -> None:
    together = threading.Barrier(4)

    def make(seed: int) -> bytes:
        together.wait(timeout=30)
        return bits(Basis(seed).b(700, 40, torch.float32))

    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(make, (0, 1, 0, 1)))
    alone = [bits(Basis(seed).b(700, 40, torch.float32)) for seed in (0, 1, 0, 1)]
    assert at_once == alone


def test_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    untouched = torch.get_rng_state()
    first = Basis(4).a(4, 100, torch.float32)
    assert torch.equal(torch.get_rng_state(), untouched)
    torch.manual_seed(2)
    assert torch.equal(Basis(4).a(4, 100, torch.float32), first)


def test_entries_have_the_moments_the_spec_states() -> None:
    entries = Basis(0).a(512, 512, torch.float64)
    n = entries.numel()
    variance = (1 - 2**-16) / 3
    assert abs(entries.mean().item()) < 5 * (variance / n) ** 0.5
    # The square of a uniform on [-1, 1] has variance 4/45.
    assert abs(entries.square().mean().item() - variance) < 5 * (4 / 45 / n) ** 0.5


def test_rows_streams_and_seeds_are_unrelated() -> None:
    width = 4096
    stacked = torch.cat(
        [
            Basis(seed).tile(stream, range(8), range(width), torch.float64)
            for seed in (0, 1)
            for stream in (STREAM_A, STREAM_B)
        ]
    )
    products = stacked @ stacked.T / width
    others = products - torch.diag(products.diag())
    assert others.abs().max().item() < 5.5 * (1 / 3) / width**0.5


def test_tile_hash_is_the_one_computed_without_numpy() -> None:
    for seed in (0, 2310, 2**64 - 1):
        assert Basis(seed).tile_hash() == golden_philox.canonical_hash(seed, SPEC)
    for threshold in (1, 43):
        spec = f"philox4x64-10/t{threshold}/v1"
        golden = golden_philox.canonical_hash(2310, spec, threshold)
        assert Basis(2310, spec).tile_hash() == golden
        assert Basis(2310, spec, layer=3).tile_hash() == golden, "of the shared streams"


def test_tile_hash_of_a_released_spec_never_changes() -> None:
    """Stored adapters carry it. The value is `golden_philox.canonical_hash(2310, SPEC)`."""
    assert Basis(2310).tile_hash() == (
        "ef01f3326a8bf8b9b56affc0acebe57b7ccd6c0cd22d5904449d5a169cdc6ced"
    )


def test_check_accepts_its_own_hash() -> None:
    Basis(2310).check(golden_philox.canonical_hash(2310, SPEC))


@pytest.mark.parametrize(
    ("seed", "spec"), [(2311, SPEC), (2310, "philox4x64-10/s8/v2")], ids=["seed", "spec"]
)
def test_check_refuses_the_hash_of_another_seed_or_spec(seed: int, spec: str) -> None:
    with pytest.raises(BasisMismatch, match=r"seed 2310 .* restore the seed and spec"):
        Basis(2310).check(golden_philox.canonical_hash(seed, spec))


@few
@given(
    streams,
    st.sampled_from((0, 7, 4095, 65_535, 2**32 - 1)),
    st.one_of(st.integers(0, 255), st.integers(14_335, 14_398)),
    st.integers(0, 7),
)
def test_check_refuses_a_single_flipped_bit(stream: int, row: int, column: int, bit: int) -> None:
    trusted = Basis(2310).tile_hash()
    fill = seeded_matrices._fill_bytes

    def fill_flipped(
        out: NDArray[np.uint8], seed: int, filled: int, first_row: int, first_column: int
    ) -> None:
        fill(out, seed, filled, first_row, first_column)
        i, j = row - first_row, column - first_column
        if filled == stream and 0 <= i < out.shape[0] and 0 <= j < out.shape[1]:
            out[i, j] ^= 1 << bit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeded_matrices, "_fill_bytes", fill_flipped)
        with pytest.raises(BasisMismatch):
            Basis(2310).check(trusted)


@pytest.mark.parametrize(
    "spec",
    [
        "philox4x64-10/s8/v2",
        "philox4x64-10/t0/v1",
        "philox4x64-10/t128/v1",
        "philox4x64-10/t043/v1",
        "philox4x64-10/t4\u0663/v1",
        "philox4x64-10/t43/v2",
        "philox4x64-10/t/v1",
        "",
    ],
)
def test_unknown_spec_is_refused_by_name(spec: str) -> None:
    with pytest.raises(BasisMismatch, match=r"philox4x64-10/s8/v1.*t<k>") as raised:
        Basis(1, spec)
    assert repr(spec) in str(raised.value)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_outside_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=str(seed)):
        Basis(seed)


@pytest.mark.parametrize(
    "span", [range(0, 8, 2), range(-1, 3), range(5, 3), slice(4, None), slice(0, 9, 3)], ids=str
)
def test_spans_that_name_no_tile_are_refused(span: range | slice) -> None:
    with pytest.raises(ValueError, match="rows"):
        Basis(0).tile(STREAM_A, span, range(4), torch.float32)
    with pytest.raises(ValueError, match="cols"):
        Basis(0).tile(STREAM_A, range(4), span, torch.float32)


def test_rows_past_the_last_one_are_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        Basis(0).tile(STREAM_A, range(2**32 - 1, 2**32 + 1), range(4), torch.float32)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_dtypes_that_cannot_hold_the_entries_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=str(dtype)):
        Basis(0).a(2, 2, dtype)


def test_generation_is_nowhere_near_ten_times_its_bar() -> None:
    """The bar, 0.15 s, is held by `benchmarks/kernels/basis_speed.py`; this catches a lost fast
    path only."""
    start = time.thread_time()
    Basis(0).a(1024, 14_336, torch.bfloat16)
    assert time.thread_time() - start < 1.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", HALF_OR_SINGLE)
def test_a_cuda_device_gets_the_same_bits(dtype: torch.dtype, spec: str) -> None:
    on_host = Basis(2310, spec).b(3000, 200, dtype)
    on_device = Basis(2310, spec).b(3000, 200, dtype, "cuda")
    assert bits(on_device.cpu()) == bits(on_host)
