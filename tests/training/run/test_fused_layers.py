"""A base's layers in their lean form give what transformers' give, and the same gradients."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.methods.row_shares import KERNELS_FROM
from server.bases.model import BaseModel
from server.training.run.fused_layers import fused_layers, fused_with
from server.training.run.layer_ops import PLAIN
from tests.models import VOCAB, Kind, tiny_base, tiny_model

KNOWN: tuple[Kind, ...] = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
ROWS = torch.randint(3, VOCAB, (3, 17), generator=torch.Generator().manual_seed(1))


def learnt(base: BaseModel, lean: AbstractContextManager[None]) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of an adapter on all linears."""
    adapter = TrainableAdapter(base, "vera", 8, 7, "all-linear", {})
    (flat,) = adapter.parameters()
    with torch.no_grad():
        flat.add_(torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)).to(flat) / 10)
    with lean, adapter.active():
        logits = base.model(input_ids=ROWS.to(base.device), use_cache=False).logits.float()
    logits.square().mean().backward()
    assert flat.grad is not None
    return logits.detach(), flat.grad


@pytest.mark.parametrize("kind", KNOWN)
def test_they_are_the_same_function(kind: Kind) -> None:
    calls = []

    def counted(gate: Tensor, up: Tensor, is_gelu: bool) -> Tensor:
        calls.append(1)
        return PLAIN.gate_mul(gate, up, is_gelu)

    base = tiny_base(kind, hidden_size=64)
    found = learnt(base, fused_with(base, replace(PLAIN, gate_mul=counted)))
    assert len(calls) == 2, "both layers took the lean form"
    for mine, plain in zip(found, learnt(base, nullcontext()), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_a_window_that_is_shorter_than_the_rows_is_kept() -> None:
    base = tiny_base("mistral", sliding_window=5, hidden_size=64)
    found = learnt(base, fused_with(base, PLAIN))
    for mine, plain in zip(found, learnt(base, nullcontext()), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_a_pass_that_fills_a_cache_runs_as_it_is() -> None:
    def refused(gate: Tensor, up: Tensor, is_gelu: bool) -> Tensor:
        raise AssertionError("the lean form fills no cache")

    base = tiny_base("llama", hidden_size=64)
    with torch.no_grad():
        plain = base.model(input_ids=ROWS, use_cache=True).logits
        with fused_with(base, replace(PLAIN, gate_mul=refused)):
            fused = base.model(input_ids=ROWS, use_cache=True).logits
    assert torch.equal(fused, plain)


def test_the_model_is_itself_outside() -> None:
    base = tiny_base("llama", hidden_size=64)
    before = [layer.forward.__func__ for layer in base.model.get_decoder().layers]
    with fused_with(base, PLAIN):
        assert not hasattr(base.model.get_decoder().layers[0].forward, "__func__")
    assert [layer.forward.__func__ for layer in base.model.get_decoder().layers] == before


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_the_same_function(kind: Kind, dtype: torch.dtype) -> None:
    model: Any = tiny_model(kind, dtype=dtype, hidden_size=64)
    base = BaseModel.of(model.to("cuda"), kind)
    found = learnt(base, fused_layers(base, KERNELS_FROM))
    for mine, plain in zip(found, learnt(base, nullcontext()), strict=True):
        off = (mine - plain).norm() / plain.norm()
        assert off < (1e-4 if dtype == torch.float32 else 4e-2)
