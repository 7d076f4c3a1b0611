"""A half-precision base on a CPU trains with attention in float32: the same function, closer."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from server.adapters.learning.trainable import TrainableAdapter
from server.bases.model import BaseModel
from server.training.run.examples import Example
from server.training.run.loss import counted_losses
from server.training.run.wide_attention import (
    float32_attention,
    reference_attention,
    wide_attention,
)
from tests.models import VOCAB, Kind, tiny_base

KINDS: tuple[Kind, ...] = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2")


def examples(count: int = 3, length: int = 17) -> list[Example]:
    made = torch.Generator().manual_seed(1)
    rows = torch.randint(3, VOCAB, (count, length), generator=made).tolist()
    lengths = range(length, length - 2 * count, -2)
    counts = (False, *[True] * (length - 1))
    return [Example(tuple(row[:end]), counts[:end]) for row, end in zip(rows, lengths, strict=True)]


def learnt(base: BaseModel) -> tuple[Tensor, Tensor]:
    """The losses of a pass in training, and the gradient of an adapter on all linears."""
    adapter = TrainableAdapter(base, "vera", 8, 7, "all-linear", {})
    (flat,) = adapter.parameters()
    with torch.no_grad():
        flat.add_(torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)) / 10)
    with adapter.active():
        losses, _ = counted_losses(base, examples())
    losses.sum().backward()
    assert flat.grad is not None
    return losses.detach(), flat.grad


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_a_float32_model(kind: Kind) -> None:
    exact = learnt(tiny_base(kind, hidden_size=64))
    half = tiny_base(kind, hidden_size=64, dtype=torch.bfloat16)
    for found, wanted in zip(learnt(half), exact, strict=True):
        assert off(found, wanted) < 0.05


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_the_plain_attention(kv_heads: int) -> None:
    made = torch.Generator().manual_seed(2)
    shapes = [(2, heads, 19, 16) for heads in (4, kv_heads, kv_heads)]
    drawn = [torch.randn(shape, generator=made).bfloat16() for shape in shapes]
    module: Any = nn.Module()
    module.is_causal, module.num_key_value_groups = True, 4 // kv_heads
    results: list[list[Tensor]] = []

    def trained(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return float32_attention(module, q, k, v, None, scaling=0.3)[0]

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference_attention(q, k, v, 0.3)

    for attend in (trained, plain):
        leaves = [it.clone().requires_grad_() for it in drawn]
        output = attend(*leaves)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        gradients = [it.grad for it in leaves if it.grad is not None]
        assert len(gradients) == 3
        results.append([output.detach(), *gradients])
    for mine, theirs in zip(*results, strict=True):
        assert off(mine.float(), theirs.float()) < 5e-3


def test_only_half_precision_on_a_cpu_is_changed_and_only_within() -> None:
    names = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        base = tiny_base("llama", dtype=dtype)
        with wide_attention(base):
            names.append(base.config._attn_implementation)
        assert base.config._attn_implementation == "sdpa"
    assert names == ["verandah_float32", "verandah_float32", "sdpa"]


def test_a_window_is_kept() -> None:
    base = tiny_base("mistral", sliding_window=5, hidden_size=64, dtype=torch.bfloat16)
    tokens = torch.tensor([examples(1)[0].tokens])
    found = []
    for within in (wide_attention(base), nullcontext()):
        with torch.no_grad(), within:
            found.append(base.model(input_ids=tokens, use_cache=False).logits.float())
    assert off(*found) < 0.05
