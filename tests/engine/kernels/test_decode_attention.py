"""Attention over blocks for one query a row, against the plain formula."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="triton is not installed")

from server.engine.kernels import decode_attention as kernel
from server.engine.kernels.decode_attention import (
    decode_attention,
    reference_decode_attention,
    split_count,
)
from tests.engine.kernels.near import DEVICE, DTYPES, MARKS, assert_near, noise, wide_view

pytestmark = MARKS
HEADS = [(8, 2, 64), (6, 2, 128), (3, 3, 16), (4, 1, 96), (20, 1, 16)]
HEADS += [(32, 8, 64), (32, 8, 128)] if DEVICE == "cuda" else []  # the interpreter takes seconds
CONTEXTS = [0, 1, 15, 16, 17, 300]
BLOCK_TOKENS = 16


def memory_of(
    contexts: list[int],
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    block_tokens: int = BLOCK_TOKENS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values, shuffled block tables and contexts; what no row may read is nan."""
    generator = torch.Generator().manual_seed(len(contexts))
    width = max(1, *(-(-it // block_tokens) for it in contexts))
    blocks = len(contexts) * width + 3
    tables = torch.randperm(blocks, generator=generator)[:-3].view(len(contexts), width)
    shape = (kv_heads, blocks, block_tokens, head_dim)
    memory = noise(2, *shape, dtype=dtype, seed=7)
    written = torch.zeros(blocks, block_tokens, dtype=torch.bool)
    for table, context in zip(tables, contexts, strict=True):
        at = torch.arange(context)
        written[table[at // block_tokens], at % block_tokens] = True
    memory.masked_fill_(~written.to(DEVICE)[:, :, None], torch.nan)
    lens = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    return memory[0], memory[1], tables.int().to(DEVICE), lens


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, kv_heads, head_dim", HEADS)
@pytest.mark.parametrize("window", [None, 1, 20])
def test_it_equals_the_reference(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, window: int | None
) -> None:
    keys, values, tables, lens = memory_of(CONTEXTS, kv_heads, head_dim, dtype)
    q = wide_view(noise(len(CONTEXTS), heads * head_dim, dtype=dtype), 24)
    scaling = head_dim**-0.5
    found = decode_attention(q, keys, values, tables, lens, scaling, window)
    assert found.is_contiguous()
    assert not found[0].any()
    assert_near(found, reference_decode_attention(q, keys, values, tables, lens, scaling, window))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("most_programs, splits", [(1, 1), (9, 3), (15, 5)])
@pytest.mark.parametrize("window", [None, 77])
def test_splitting_changes_nothing(
    dtype: torch.dtype,
    most_programs: int,
    splits: int,
    window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "_PROGRAMS", most_programs)
    monkeypatch.setattr(kernel, "_FEWEST_KEYS", 16)
    contexts = [100, 0, 33]
    assert split_count(len(contexts), window or 112) == splits
    keys, values, tables, lens = memory_of(contexts, 1, 64, dtype)
    q = noise(len(contexts), 3 * 64, dtype=dtype)
    found = decode_attention(q, keys, values, tables, lens, 0.125, window)
    assert_near(found, reference_decode_attention(q, keys, values, tables, lens, 0.125, window))


def test_blocks_have_any_length() -> None:
    keys, values, tables, lens = memory_of([40, 0, 3], 2, 16, torch.float32, block_tokens=3)
    q = noise(3, 4 * 16, dtype=torch.float32)
    found = decode_attention(q, keys, values, tables, lens, 0.25)
    assert_near(found, reference_decode_attention(q, keys, values, tables, lens, 0.25))


def test_the_reference_is_attention() -> None:
    keys, values, tables, lens = memory_of([32], 2, 64, torch.float32)
    q = noise(1, 6 * 64, dtype=torch.float32)
    order = tables[0].long()
    key, value = (memory[:, order].flatten(1, 2)[None] for memory in (keys, values))
    expected = scaled_dot_product_attention(q.view(1, 6, 1, 64), key, value, enable_gqa=True)
    found = reference_decode_attention(q, keys, values, tables, lens, 0.125)
    assert_near(found, expected.view(1, -1))


def test_large_scores_do_not_overflow() -> None:
    keys, values, tables, lens = memory_of([40, 3], 1, 16, torch.float32)
    q = 1e4 * noise(2, 16, dtype=torch.float32)
    found = decode_attention(q, keys, values, tables, lens, 1.0)
    assert_near(found, reference_decode_attention(q, keys, values, tables, lens, 1.0))


@pytest.mark.parametrize(
    "programs, most_keys, splits",
    [
        (8, 256, 2),  # one row, few keys
        (8, 8192, 33),
        (64, 2048, 4),
        (512, 8192, 1),  # 64 rows fill the device
        (512, 32768, 4),  # ... but a long one among them is shared
        (2048, 131072, 1),
        (1, 131072, 64),
        (0, 16, 1),
    ],
)
def test_splits_fill_the_device(programs: int, most_keys: int, splits: int) -> None:
    assert split_count(programs, most_keys) == splits
