"""RandLoRA on a CUDA device: serving and learning against the reference."""

import pytest
import torch

from server.adapters.methods.method import BasisPair
from server.adapters.methods.randlora.randlora import RandLora
from tests.adapters.methods.test_randlora import (
    POPULARITY,
    Served,
    Trained,
    change,
    drawn,
    linear,
    pair_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(64, 64), (64, 200), (200, 64), (51, 37)]
RANK = 6


def on_device(pair: BasisPair) -> BasisPair:
    return BasisPair(pair.a.cuda(), pair.bt.cuda())


@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
@pytest.mark.parametrize("method", [RandLora(), RandLora(sparsity=3, pairing="peft")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", POPULARITY.values(), ids=POPULARITY)
def test_serving_is_the_reference(
    method: RandLora, in_features: int, out_features: int, dtype: torch.dtype, rows: list[int]
) -> None:
    target = linear(in_features, out_features)
    stored = drawn(method, target, RANK, many=6, dtype=dtype)
    served = Served({name: value.cuda() for name, value in stored.items()}, rows)
    served.rows = served.rows.cuda()
    pair = on_device(pair_of(method, target, RANK, dtype))
    x = torch.randn(len(rows), in_features, dtype=dtype)
    delta = method.deltas({"x": (target, served)}, RANK, {"x": pair})["x"]
    with torch.inference_mode():
        y = torch.zeros(len(rows), out_features, dtype=dtype, device="cuda")
        fast = delta(x.cuda(), x.cuda(), y).cpu().double()
    updates = {
        row: change(method, target, RANK, {name: v[row] for name, v in stored.items()})
        for row in set(rows)
    }
    expected = torch.stack([updates[row] @ x[i].double() for i, row in enumerate(rows)])
    least = 1e-5 if dtype == torch.float32 else 0.02
    assert (fast - expected).norm() < least * expected.norm()


@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
@pytest.mark.parametrize("method", [RandLora(), RandLora(sparsity=3, pairing="peft")], ids=str)
def test_gradients_are_those_of_the_plain_formula(
    method: RandLora, in_features: int, out_features: int
) -> None:
    target = linear(in_features, out_features)
    leaves = {name: v[0].double().requires_grad_() for name, v in drawn(method, target, 6).items()}
    x = torch.randn(9, in_features).double().requires_grad_()
    weights = torch.randn(9, out_features).double()
    plain = (x @ change(method, target, RANK, leaves).t() * weights).sum()
    rows = Trained(**{name: leaf.float().cuda() for name, leaf in leaves.items()})
    pair = on_device(pair_of(method, target, RANK))
    delta = method.deltas({"x": (target, rows)}, RANK, {"x": pair})["x"]
    on_cuda = x.float().cuda()
    fast = delta(on_cuda, on_cuda, torch.zeros(9, out_features, device="cuda")).cpu().double()
    got, expected = (
        torch.autograd.grad(loss, (*leaves.values(), x)) for loss in ((fast * weights).sum(), plain)
    )
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
