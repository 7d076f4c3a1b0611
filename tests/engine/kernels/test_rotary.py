"""Rotation and storing, against the plain formula and transformers' own rotation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

pytest.importorskip("triton", reason="triton is not installed")

from server.engine.kernels.rotary import (
    HeadNorms,
    reference_rotate_and_store,
    rotate_and_store,
)
from tests.engine.kernels.near import DEVICE, DTYPES, MARKS, assert_near, noise, wide_view

pytestmark = MARKS
BLOCKS, BLOCK_TOKENS = 5, 16
HEADS = [(32, 8, 64), (6, 2, 128), (3, 3, 16), (4, 1, 96), (1, 1, 48)]


def angles(tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin as transformers' modules give them, halves repeated."""
    turn = noise(tokens, head_dim // 2, dtype=torch.float32, seed=9).repeat(1, 2)
    return turn.cos().to(dtype), turn.sin().to(dtype)


def places(tokens: int) -> Tensor:
    order = torch.randperm(BLOCKS * BLOCK_TOKENS, generator=torch.Generator().manual_seed(1))
    return order[:tokens].to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, kv_heads, head_dim", HEADS)
@pytest.mark.parametrize("tokens, extra, norms", [(1, 0, ""), (7, 24, "own"), (3, 0, "wide")])
def test_it_equals_the_reference(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    tokens: int,
    extra: int,
    norms: str,
) -> None:
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    # q, k and v are neighbours in one tensor, as the product of a site leaves them.
    qkv = wide_view(noise(tokens, sum(widths), dtype=dtype), extra)
    memory = noise(2, kv_heads, BLOCKS, BLOCK_TOKENS, head_dim, dtype=dtype, seed=5)
    cos, sin = angles(tokens, head_dim, dtype)
    of_heads = None
    if norms:
        kind = torch.float32 if norms == "wide" else dtype
        of_heads = HeadNorms(
            noise(head_dim, dtype=kind, seed=7), noise(head_dim, dtype=kind, seed=8), 1e-6
        )
    expected, expected_memory = qkv.clone(), memory.clone()
    turns: list[tuple[Callable[..., None], Tensor, Tensor]] = [
        (reference_rotate_and_store, expected, expected_memory),
        (rotate_and_store, qkv, memory),
    ]
    for rotate, x, kv in turns:
        q, k, v = x.split(widths, dim=1)
        rotate(q, k, v, cos, sin, kv[0], kv[1], places(tokens), of_heads)
    assert_near(qkv, expected)
    assert_near(memory, expected_memory)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_rounds_as_transformers_does(dtype: torch.dtype) -> None:
    tokens, heads, head_dim = 4, 6, 64
    q, k, v = (noise(tokens, heads * head_dim, dtype=dtype, seed=i) for i in range(3))
    cos, sin = angles(tokens, head_dim, dtype)
    turned = apply_rotary_pos_emb(
        q.unflatten(1, (heads, -1)), k.unflatten(1, (heads, -1)), cos, sin, unsqueeze_dim=1
    )
    memory = torch.zeros(2, heads, BLOCKS, BLOCK_TOKENS, head_dim, dtype=dtype, device=DEVICE)
    rotate_and_store(q, k, v, cos, sin, memory[0], memory[1], places(tokens))
    # float32 may join a product and the sum without rounding between them.
    tolerance = 1e-6 if dtype == torch.float32 else 0
    for found, expected in zip((q, k), turned, strict=True):
        assert_close(found, expected.flatten(1), rtol=tolerance, atol=tolerance)
    stored = memory.flatten(2, 3)[:, :, places(tokens)].transpose(1, 2).flatten(2)
    assert torch.equal(stored, torch.stack((k, v)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_takes_no_tokens(dtype: torch.dtype) -> None:
    nothing = torch.zeros(0, 32, dtype=dtype, device=DEVICE)
    memory = torch.ones(2, 1, BLOCKS, BLOCK_TOKENS, 32, dtype=dtype, device=DEVICE)
    cos, sin = angles(0, 32, dtype)
    rotate_and_store(nothing, nothing, nothing, cos, sin, memory[0], memory[1], places(0))
    assert torch.equal(memory, torch.ones_like(memory))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_is_finite(dtype: torch.dtype) -> None:
    q, k, v = (noise(3, 32, dtype=dtype, seed=i) for i in range(3))
    k[0, 3] = v[0, 5] = torch.nan
    v[1, 7], v[1, 30] = torch.inf, -torch.inf
    expected = torch.nan_to_num(v)
    memory = torch.zeros(2, 1, BLOCKS, BLOCK_TOKENS, 32, dtype=dtype, device=DEVICE)
    cos, sin = angles(3, 32, dtype)
    rotate_and_store(q, k, v, cos, sin, memory[0], memory[1], places(3))
    assert memory.isfinite().all()
    assert torch.equal(memory[1].flatten(0, 2)[places(3)], expected)
