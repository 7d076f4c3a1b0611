"""LoRA's kernels, against the equation token by token."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from server.adapters.kernels.lora_expand import (
    LoraPart,
    expand,
    reference_expand,
)
from server.adapters.kernels.lora_gate import expand_gate, reference_expand_gate
from server.adapters.kernels.lora_shrink import reference_shrink, shrink
from server.adapters.kernels.segments import Segments, capacity_for
from tests.adapters.kernels.bank import Rows, asked
from tests.engine.kernels.near import DEVICE, DTYPES, MARKS, assert_near, noise, wide_view

pytestmark = MARKS

QKV, ONE, ODD = (128, 32, 32), (700,), (37, 1, 90)
CASES = [
    ("distinct", 1, 96, ONE, 16),
    ("distinct", 5, 1100, QKV, 16),
    ("skewed", 30, 130, QKV, 5),
    ("identical", 18, 70, QKV, 8),
    ("mixed", 8, 77, ODD, 30),
    ("base", 20, 77, ODD, 16),
    ("skewed", 6, 280, (90,), 100),
]


def placed(rows: Rows, width: int, outs: tuple[int, ...], rank: int) -> list[LoraPart]:
    parts, column = [], 0
    for out in outs:
        parts.append(LoraPart(column, width, out, rows.place(rank * width), rows.place(out * rank)))
        column += out
    return parts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity, tokens, width, outs, rank", CASES)
def test_shrink_equals_the_reference(
    dtype: torch.dtype, popularity: str, tokens: int, width: int, outs: tuple[int, ...], rank: int
) -> None:
    rows = Rows()
    parts = placed(rows, width, outs, rank)
    memory, first_pages = rows.memory(5, dtype)
    pages = asked(popularity, tokens, first_pages)
    segments = Segments.of(pages.tolist(), capacity_for(tokens, 5), DEVICE)
    x = wide_view(noise(tokens, width, dtype=dtype, seed=1) / width**0.5, 24)
    s = shrink(x, memory, segments, parts, rank)
    assert s.dtype == torch.float32
    assert s.shape[1:] == (tokens, len(parts), rank)
    expected = reference_shrink(x, memory, segments, parts, rank)
    torch.testing.assert_close(s.sum(0)[pages > 0], expected[0][pages > 0], rtol=1e-4, atol=1e-4)
    assert torch.equal(s, shrink(x, memory, segments, parts, rank)) or (pages == 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity, tokens, width, outs, rank", CASES)
def test_expand_equals_the_reference(
    dtype: torch.dtype, popularity: str, tokens: int, width: int, outs: tuple[int, ...], rank: int
) -> None:
    rows = Rows()
    parts = placed(rows, 16, outs, rank)
    memory, first_pages = rows.memory(5, dtype)
    pages = asked(popularity, tokens, first_pages)
    segments = Segments.of(pages.tolist(), capacity_for(tokens, 5), DEVICE)
    y = wide_view(noise(tokens, sum(outs), dtype=dtype, seed=1), 40)
    s = noise(3, tokens, len(parts), rank, dtype=torch.float32, seed=2) / rank**0.5
    before, expected = y.clone(), y.clone()
    reference_expand(expected, s, memory, segments, parts, rank)
    expand(y, s, memory, segments, parts, rank)
    assert_near(y, expected)
    assert torch.equal(y[pages == 0], before[pages == 0])
    assert torch.equal(y, before) == (not pages.any())


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_may_share_one_projection_and_one_may_be_absent(dtype: torch.dtype) -> None:
    """As where B alone is trained: every part reads the same `A x`, in the base's dtype."""
    rows = Rows()
    q, _, v = placed(rows, 16, QKV, 8)
    memory, first_pages = rows.memory(4, dtype)
    pages = asked("skewed", 12, first_pages)
    segments = Segments.of(pages.tolist(), 12, DEVICE)
    product = noise(12, sum(QKV) + 8, dtype=dtype, seed=1)
    y, z = product[:, : sum(QKV)], product[:, sum(QKV) :]
    s = z[None, :, None, :].expand(1, -1, 2, -1)
    before, expected = y.clone(), y.clone()
    reference_expand(expected, s, memory, segments, [q, v], 8)
    expand(y, s, memory, segments, [q, v], 8)
    assert_near(y, expected)
    assert torch.equal(y[:, 128:160], before[:, 128:160])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["both", "gate", "up", "both, gelu"])
@pytest.mark.parametrize(
    "popularity, tokens, width, rank",
    [("mixed", 21, 75, 16), ("distinct", 1, 300, 8), ("skewed", 40, 33, 70), ("base", 5, 40, 4)],
)
def test_the_gate_equals_the_reference(
    dtype: torch.dtype, which: str, popularity: str, tokens: int, width: int, rank: int
) -> None:
    rows = Rows()
    gate, up = placed(rows, 16, (width, width), rank)
    found = (gate if which != "up" else None, up if which != "gate" else None)
    is_gelu = "gelu" in which
    memory, first_pages = rows.memory(5, dtype)
    pages = asked(popularity, tokens, first_pages)
    segments = Segments.of(pages.tolist(), tokens, DEVICE)
    y = wide_view(noise(tokens, 2 * width, dtype=dtype, seed=1), 40)
    parts = sum(part is not None for part in found)
    s = noise(3, tokens, parts, rank, dtype=torch.float32, seed=2) / rank**0.5
    before = y.clone()
    act = expand_gate(y, s, memory, segments, pages, *found, width, rank, is_gelu)
    assert act.is_contiguous()
    expected = reference_expand_gate(y, s, memory, segments, *found, width, rank, is_gelu)
    assert_near(act, expected)
    assert torch.equal(y, before)


def test_a_token_gives_the_same_whoever_it_stands_beside() -> None:
    """Alone it takes the way without tensor cores, among others the way with them."""
    dtype = DTYPES[-1]
    rows = Rows()
    parts = placed(rows, 200, ONE, 16)
    memory, (page, *_) = rows.memory(2, dtype)
    x, y = noise(20, 200, dtype=dtype), noise(20, 700, dtype=dtype, seed=1)
    given = []
    for tokens in (1, 20):
        segments = Segments.of([page] * tokens, 2, DEVICE)
        out = y[:tokens].clone()
        s = shrink(x[:tokens], memory, segments, parts, 16)
        expand(out, s, memory, segments, parts, 16)
        given.append(out[0])
    assert not torch.equal(given[0], y[0])
    torch.testing.assert_close(*given, rtol=2e-2, atol=2e-2)


def test_no_tokens_are_no_work() -> None:
    x = noise(0, 32, dtype=torch.float32)
    memory, parts = noise(2048, dtype=torch.float32), [LoraPart(0, 32, 32, 0, 512)]
    s = shrink(x, memory, Segments.of([], 0, DEVICE), parts, 16)
    assert s.shape[1:] == (0, 1, 16)
    expand(x, s, memory, Segments.of([], 0, DEVICE), parts, 16)
    pages = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    nothing = Segments.of([], 0, DEVICE)
    assert expand_gate(x, s, memory, nothing, pages, None, None, 16, 16).shape == (0, 16)
