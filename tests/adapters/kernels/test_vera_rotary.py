"""One launch for what three do, against the references of the three."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from server.adapters.kernels.vera import VeraPart, reference_add_vera
from server.adapters.kernels.vera_rotary import rotate_vera, takes
from server.engine.kernels.rotary import reference_rotate_and_store
from tests.adapters.kernels.bank import Rows, asked
from tests.engine.kernels.near import DEVICE, DTYPES, MARKS, assert_near, noise

pytestmark = MARKS
BLOCKS, BLOCK_TOKENS = 4, 16


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("present", ["qkv", "qv", "k"])
@pytest.mark.parametrize(
    "popularity, tokens, heads, kv_heads, head_dim, rank",
    [("mixed", 21, 4, 2, 32, 30), ("distinct", 1, 3, 1, 64, 8), ("base", 5, 2, 2, 32, 16)],
)
def test_it_equals_the_references(
    dtype: torch.dtype,
    present: str,
    popularity: str,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rank: int,
) -> None:
    assert takes(tokens, head_dim, rank, dtype.itemsize)
    rows, column = Rows(), 0
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    parts: list[VeraPart | None] = []
    for name, width in zip("qkv", widths, strict=True):
        part = VeraPart(column, width, rows.place(rank), rows.place(width))
        parts.append(part if name in present else None)
        column += width
    memory, first_pages = rows.memory(4, dtype)
    pages = asked(popularity, tokens, first_pages)
    product = noise(tokens, column + rank, dtype=dtype, seed=1)
    product[:, column:] *= rank**-0.5
    bt = noise(rank, max(widths), dtype=dtype, seed=2)
    turn = noise(tokens, head_dim // 2, dtype=torch.float32, seed=3).repeat(1, 2)
    cos, sin = turn.cos().to(dtype), turn.sin().to(dtype)
    cache = noise(2, kv_heads, BLOCKS, BLOCK_TOKENS, head_dim, dtype=dtype, seed=4)
    write_at = torch.randperm(BLOCKS * BLOCK_TOKENS)[:tokens].to(DEVICE)
    expected, stored = product.clone(), cache.clone()
    own = [part for part in parts if part is not None]
    reference_add_vera(expected, expected[:, column:], bt, memory, pages, own, rank)
    split = expected[:, :column].split(widths, dim=1)
    reference_rotate_and_store(*split, cos, sin, stored[0], stored[1], write_at)
    qkv, z = product[:, :column], product[:, column:]
    rotate_vera(
        qkv, z, bt, memory, pages, parts, rank, cos, sin, cache[0], cache[1], write_at
    )  # fmt: skip
    assert_near(product, expected)
    assert_near(cache, stored)
