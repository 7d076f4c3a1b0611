"""A trainable adapter: starts as the base, learns, and is what the store would serve."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from server.adapters.learning.trainable import TrainableAdapter
from server.bases.model import BaseModel
from server.bases.seeded_matrices import Basis
from server.errors import InvalidAdapter, InvalidRequest
from tests.adapters.made import Made, merged_logits
from tests.models import KINDS, VOCAB, Kind, tiny_base

TOKENS = torch.arange(5, 45)


def new_adapter(base: BaseModel, rank: int = 8, **options: float) -> TrainableAdapter:
    return TrainableAdapter(base, "vera", rank, 7, "all-linear", options)


def answer(base: BaseModel, adapter: TrainableAdapter, tokens: Tensor = TOKENS[None]) -> Tensor:
    with adapter.active():
        logits: Tensor = base.model(tokens, use_cache=False).logits
    return logits


def learn(base: BaseModel, adapter: TrainableAdapter, steps: int = 5) -> list[float]:
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = functional.cross_entropy(answer(base, adapter)[0, :-1], TOKENS[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base(kind: Kind) -> None:
    base = tiny_base(kind)
    with torch.no_grad():
        torch.testing.assert_close(
            answer(base, new_adapter(base))[0], merged_logits(base, None, TOKENS)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_learns_is_the_dense_merge_of_its_tensors(kind: Kind) -> None:
    base = tiny_base(kind)
    adapter = new_adapter(base)
    losses = learn(base, adapter)
    assert losses[-1] < losses[0] - 0.02
    made = Made(adapter.manifest(created_at=1, provenance={}), adapter.tensors())
    with torch.no_grad():
        torch.testing.assert_close(
            answer(base, adapter)[0], merged_logits(base, made, TOKENS), rtol=1e-4, atol=1e-4
        )


def test_the_base_is_itself_outside() -> None:
    base = tiny_base("llama")
    adapter = new_adapter(base)
    learn(base, adapter)
    with torch.inference_mode():
        outside = base.model(TOKENS[None], use_cache=False).logits[0]
    assert torch.equal(outside, merged_logits(base, None, TOKENS))
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_gradients_are_those_of_the_dense_formula() -> None:
    base = tiny_base("llama")
    path = "model.layers.1.mlp.down_proj"
    adapter = TrainableAdapter(base, "vera", 4, 7, [path], {})
    learn(base, adapter, steps=1)
    (flat,) = adapter.parameters()
    linear = base.targets[path]
    unit = adapter._method.unit(linear, 4)["b"]
    a, wide = Basis(7).a(4, linear.in_features, torch.float32), Basis(7).b(48, 4, torch.float32)
    plain_d, plain_b = (p.detach().clone().requires_grad_() for p in flat.split([4, 48]))
    weight = linear.module.get_parameter("weight")
    change = (plain_b * unit)[:, None] * (wide @ (plain_d[:, None] * a))
    logits = torch.func.functional_call(
        base.model, {f"{path}.weight": weight + change}, (TOKENS[None],), {"use_cache": False}
    ).logits
    flat.grad = None
    answer(base, adapter).square().sum().backward()
    logits.square().sum().backward()
    assert flat.grad is not None
    assert plain_d.grad is not None
    assert plain_b.grad is not None
    plain = torch.cat([plain_d.grad, plain_b.grad])
    torch.testing.assert_close(flat.grad, plain, rtol=1e-3, atol=1e-3)


def test_rows_of_a_padded_batch_do_not_meet() -> None:
    base = tiny_base("qwen2")
    adapter = new_adapter(base)
    learn(base, adapter)
    rows = torch.randint(3, VOCAB, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = answer(base, adapter, rows)
        for row, logits in zip(rows, together, strict=True):
            alone = answer(base, adapter, row[None])[0]
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def test_tensors_come_back_bit_for_bit() -> None:
    base = tiny_base("llama")
    taught, fresh = new_adapter(base, rank=5), new_adapter(base, rank=5)
    learn(base, taught)
    parameters = fresh.parameters()
    fresh.load_tensors(taught.tensors())
    for ours, theirs in zip(parameters, taught.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, tensor in fresh.tensors().items():
        assert torch.equal(tensor, taught.tensors()[name])


def test_dropout_hides_inputs_only_while_gradients_are_recorded() -> None:
    base = tiny_base("llama")
    adapter = new_adapter(base, dropout=0.5)
    learn(base, adapter)
    with torch.no_grad():
        assert torch.equal(answer(base, adapter), answer(base, adapter))
    assert not torch.equal(answer(base, adapter), answer(base, adapter))


def test_d_initial_is_an_option() -> None:
    adapter = new_adapter(tiny_base("llama"), d_initial=0.25)
    assert {t.unique().item() for n, t in adapter.tensors().items() if n.endswith(".d")} == {0.25}


def test_refuses_tensors_of_another_shape() -> None:
    base = tiny_base("llama")
    small, large = new_adapter(base, rank=4), new_adapter(base, rank=5)
    with pytest.raises(InvalidAdapter, match=r"\.d' has shape \[5\]"):
        small.load_tensors(large.tensors())


def test_refuses_an_unknown_method_and_target() -> None:
    base = tiny_base("llama")
    with pytest.raises(InvalidAdapter, match=r"'magic' is unknown.*vera"):
        TrainableAdapter(base, "magic", 4, 7, "all-linear", {})
    with pytest.raises(InvalidRequest, match=r"'z_proj'.*q_proj"):
        TrainableAdapter(base, "vera", 4, 7, ["z_proj"], {})


def test_one_forward_at_a_time() -> None:
    base = tiny_base("llama")
    adapter = new_adapter(base)
    with adapter.active(), pytest.raises(RuntimeError, match="already running"), adapter.active():
        pass
