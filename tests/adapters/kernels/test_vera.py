"""VeRA's kernels, against the equation token by token."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from server.adapters.kernels.vera_gate import gate_vera, reference_gate_vera
from server.adapters.kernels.vera_product_kernel import (
    Tiles,
    VeraPart,
    add_vera,
    reference_add_vera,
    tiles_for,
)
from tests.adapters.kernels.bank import Rows, asked
from tests.engine.kernels.near import DTYPES, MARKS, assert_near, noise

pytestmark = MARKS

QKV, ONE, ODD = (128, 32, 32), (192,), (37, 1, 90)


def placed(rows: Rows, outs: tuple[int, ...], rank: int) -> list[VeraPart]:
    parts, column = [], 0
    for out in outs:
        parts.append(VeraPart(column, out, rows.place(rank), rows.place(out)))
        column += out
    return parts


def product(tokens: int, width: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A site's product: y, and z as further columns of the same rows; then nobody's columns."""
    out = noise(tokens, width + rank + 8, dtype=dtype, seed=1)
    out[:, width : width + rank] *= rank**-0.5
    out[:, width + rank :] = torch.nan
    return out[:, :width], out[:, width : width + rank]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "popularity, tokens, outs, rank",
    [
        ("distinct", 1, ONE, 5),
        ("skewed", 64, QKV, 256),
        ("identical", 7, QKV, 16),
        ("mixed", 33, ODD, 30),
        ("base", 20, ODD, 8),
        ("skewed", 5, ODD, 1),
        ("mixed", 130, ONE, 100),
    ],
)
def test_it_equals_the_reference(
    dtype: torch.dtype, popularity: str, tokens: int, outs: tuple[int, ...], rank: int
) -> None:
    rows = Rows()
    parts = placed(rows, outs, rank)
    memory, first_pages = rows.memory(8, dtype)
    pages = asked(popularity, tokens, first_pages)
    y, z = product(tokens, sum(outs), rank, dtype)
    bt = noise(rank + 3, max(outs) + 5, dtype=dtype, seed=2)
    before, expected = y.clone(), y.clone()
    reference_add_vera(expected, z, bt, memory, pages, parts, rank)
    add_vera(y, z, bt, memory, pages, parts, rank)
    assert_near(y, expected)
    assert torch.equal(y, before) == (not pages.any())


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_an_absent_part_stay(dtype: torch.dtype) -> None:
    rows = Rows()
    q, _, v = placed(rows, QKV, 8)
    memory, first_pages = rows.memory(4, dtype)
    pages = asked("mixed", 12, first_pages)
    y, z = product(12, sum(QKV), 8, dtype)
    bt = noise(8, max(QKV), dtype=dtype, seed=2)
    before, expected = y.clone(), y.clone()
    reference_add_vera(expected, z, bt, memory, pages, [q, v], 8)
    add_vera(y, z, bt, memory, pages, [q, v], 8)
    assert_near(y, expected)
    assert torch.equal(y[:, 128:160], before[:, 128:160])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_the_base_keep_every_bit(dtype: torch.dtype) -> None:
    rows = Rows()
    parts = placed(rows, ONE, 16)
    memory, first_pages = rows.memory(4, dtype)
    pages = asked("mixed", 40, first_pages)
    y, z = product(40, 192, 16, dtype)
    z[pages == 0] = torch.inf
    before = y.clone()
    add_vera(y, z, noise(16, 192, dtype=dtype), memory, pages, parts, 16)
    assert torch.equal(y[pages == 0], before[pages == 0])
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "popularity, tokens, width, rank",
    [
        ("distinct", 1, 192, 5),
        ("skewed", 64, 64, 256),
        ("mixed", 33, 75, 30),
        ("base", 20, 40, 8),
        ("identical", 70, 40, 16),
    ],
)
def test_the_gate_equals_the_reference(
    dtype: torch.dtype, popularity: str, tokens: int, width: int, rank: int
) -> None:
    rows = Rows()
    gate, up = placed(rows, (width, width), rank)
    memory, first_pages = rows.memory(8, dtype)
    pages = asked(popularity, tokens, first_pages)
    y, z = product(tokens, 2 * width, rank, dtype)
    bt = noise(rank, width + 1, dtype=dtype, seed=2)
    before = y.clone()
    act = gate_vera(y, z, bt, memory, pages, gate, up, width, rank)
    assert act.is_contiguous()
    assert_near(act, reference_gate_vera(y, z, bt, memory, pages, gate, up, width, rank))
    assert torch.equal(y, before)


@pytest.mark.parametrize("which", ["gate", "up", "neither"])
@pytest.mark.parametrize("is_gelu", [False, True])
def test_half_of_a_gate_may_be_plain(which: str, is_gelu: bool) -> None:
    dtype = DTYPES[-1]
    rows = Rows()
    both = dict(zip(("gate", "up"), placed(rows, (48, 48), 8), strict=True))
    memory, first_pages = rows.memory(4, dtype)
    pages = asked("mixed", 12, first_pages)
    y, z = product(12, 96, 8, dtype)
    bt = noise(8, 48, dtype=dtype, seed=2)
    gate, up = (both[name] if which == name else None for name in ("gate", "up"))
    given = (y, z, bt, memory, pages, gate, up, 48, 8)
    act = gate_vera(*given, is_gelu=is_gelu)
    assert_near(act, reference_gate_vera(*given, is_gelu=is_gelu))


LARGE = [tiles_for(tokens, 28672, 256, products) for tokens in (128, 2048) for products in (1, 2)]


@pytest.mark.parametrize("rank", [70, 100, 129, 192])
@pytest.mark.parametrize("tiles", [*LARGE, Tiles(16, 64, 16, 4, 2)])
def test_tiles_change_nothing(tiles: Tiles, rank: int) -> None:
    """At few tokens by tiles of many: whatever covers them, the sums are the same."""
    dtype = DTYPES[-1]
    rows = Rows()
    parts = placed(rows, QKV, rank)
    memory, first_pages = rows.memory(4, dtype)
    pages = asked("skewed", 40, first_pages)
    y, z = product(40, sum(QKV), rank, dtype)
    bt = noise(rank, max(QKV), dtype=dtype, seed=2)
    expected = y.clone()
    reference_add_vera(expected, z, bt, memory, pages, parts, rank)
    add_vera(y, z, bt, memory, pages, parts, rank, tiles)
    assert_near(y, expected)


@pytest.mark.parametrize("rank", [70, 100, 129, 192])
@pytest.mark.parametrize("tiles", [*LARGE, Tiles(16, 64, 16, 4, 2)])
def test_tiles_change_nothing_of_a_gate(tiles: Tiles, rank: int) -> None:
    dtype = DTYPES[-1]
    rows = Rows()
    gate, up = placed(rows, (96, 96), rank)
    memory, first_pages = rows.memory(4, dtype)
    pages = asked("skewed", 40, first_pages)
    y, z = product(40, 192, rank, dtype)
    bt = noise(rank, 96, dtype=dtype, seed=2)
    act = gate_vera(y, z, bt, memory, pages, gate, up, 96, rank, tiles)
    assert_near(act, reference_gate_vera(y, z, bt, memory, pages, gate, up, 96, rank))


def test_no_tokens_are_no_work() -> None:
    y = noise(0, 48, dtype=torch.float32)
    memory, pages = noise(256, dtype=torch.float32), torch.zeros(0, dtype=torch.int64)
    add_vera(y, y[:, 32:], noise(16, 32, dtype=torch.float32), memory, pages, [], 16)
    assert gate_vera(y, y[:, 32:], y, memory, pages, None, None, 16, 16).shape == (0, 16)


@pytest.mark.parametrize("popularity", ["identical", "mixed", "distinct"])
def test_a_tile_of_one_adapter_equals_the_reference(popularity: str) -> None:
    """Large tiles, which take ranks by steps, read the vector of their only adapter once."""
    dtype = DTYPES[-1]
    rows = Rows()
    parts = placed(rows, ODD, 70)
    memory, first_pages = rows.memory(1 if popularity == "mixed" else 3, dtype)
    pages = asked(popularity, 40, first_pages)
    y, z = product(40, sum(ODD), 70, dtype)
    bt = noise(70, max(ODD), dtype=dtype, seed=2)
    expected = y.clone()
    reference_add_vera(expected, z, bt, memory, pages, parts, 70)
    add_vera(y, z, bt, memory, pages, parts, 70, Tiles(64, 64, 32, 4, 3))
    assert_near(y, expected)


def test_few_tokens_take_all_ranks_at_once_in_tiles_that_fill_the_device() -> None:
    for tokens in (1, 8, 64):
        tiles = tiles_for(tokens, 4096, 256)
        assert tiles.ranks == 256
        assert 4096 // tiles.columns * -(-tokens // tiles.tokens) >= (128 if tokens == 64 else 64)
