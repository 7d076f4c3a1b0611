"""What lies between products in training: each kernel and its way back, against the plain formula
and torch's own gradients of it."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from server.training.kernels.cross_entropy import cross_entropy
from server.training.kernels.trainable_mlp_gate import gate_mul
from server.training.kernels.trainable_norm import add_rms_norm
from server.training.kernels.trainable_rotary import rotate
from server.training.run.layer_ops import PLAIN
from server.training.run.loss import reference_cross_entropy
from tests.engine.kernels.near import DTYPES, MARKS, assert_near, noise

pytestmark = MARKS
Outputs = Sequence[Tensor]


def both_ways(
    function: Callable[..., Outputs], inputs: Sequence[Tensor], given: Sequence[Tensor]
) -> Outputs:
    """What a function gives, and the gradients of its inputs for what comes back."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    found = function(*leaves)
    return [*found, *torch.autograd.grad(found, leaves, given)]


def assert_all_near(found: Outputs, expected: Outputs) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert_near(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, hidden", [(1, 16), (5, 384), (3, 1000)])
@pytest.mark.parametrize("adds, wide", [(True, False), (False, False), (True, True)])
def test_norm(dtype: torch.dtype, tokens: int, hidden: int, adds: bool, wide: bool) -> None:
    made = [noise(tokens, hidden, dtype=dtype, seed=seed) for seed in range(4)]
    weight = noise(hidden, dtype=torch.float32 if wide else dtype, seed=9)

    def kernel(h: Tensor, delta: Tensor | None = None) -> Outputs:
        return add_rms_norm(h, delta, weight, 1e-5)

    def plain(h: Tensor, delta: Tensor | None = None) -> Outputs:
        return PLAIN.add_rms_norm(h, delta, weight, 1e-5)

    inputs = made[: 1 + adds]
    assert_all_near(both_ways(kernel, inputs, made[2:]), both_ways(plain, inputs, made[2:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (7, 300), (3, 2048)])
@pytest.mark.parametrize("is_gelu", [False, True])
def test_gate(dtype: torch.dtype, shape: tuple[int, int], is_gelu: bool) -> None:
    gate, up, given = (noise(*shape, dtype=dtype, seed=seed) for seed in range(3))
    found, plain = (
        both_ways(lambda *it, f=function: [f(*it, is_gelu)], [gate, up], [given])
        for function in (gate_mul, PLAIN.gate_mul)
    )
    assert_all_near(found, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, kv_heads, head_dim", [(4, 2, 16), (6, 6, 64), (3, 1, 2)])
def test_rotary(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
    rows, positions = 3, 7
    q, gq = (noise(rows * positions, heads * head_dim, dtype=dtype, seed=s) for s in (1, 2))
    k, gk = (noise(rows * positions, kv_heads * head_dim, dtype=dtype, seed=s) for s in (3, 4))
    angles = noise(positions, head_dim // 2, dtype=torch.float32, seed=5).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    found = both_ways(lambda x, y: rotate(x, y, cos, sin), [q, k], [gq, gk])
    assert_all_near(found, both_ways(lambda x, y: PLAIN.rotate(x, y, cos, sin), [q, k], [gq, gk]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, vocabulary", [(1, 300), (5, 4096), (4, 9001)])
def test_cross_entropy(dtype: torch.dtype, rows: int, vocabulary: int) -> None:
    logits = noise(rows, vocabulary, dtype=dtype, seed=1) * 4
    targets = (noise(rows, dtype=torch.float32, seed=2).abs() * 1000).long() % vocabulary
    logits[0, targets[0]] = logits[0].max()  # among the largest, where argmax takes the first
    given = noise(rows, dtype=torch.float32, seed=3)
    (loss, grad), (plain_loss, plain_grad) = (
        both_ways(lambda x, f=function: [f(x, targets)[0]], [logits], [given])
        for function in (cross_entropy, reference_cross_entropy)
    )
    assert_near(loss, plain_loss)
    assert_near(grad, plain_grad)
    hits = cross_entropy(logits, targets)[1]
    assert torch.equal(hits, reference_cross_entropy(logits, targets)[1])


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, in the interpreter
def test_a_row_that_is_not_finite_is_alone_in_it() -> None:
    logits = noise(3, 300, dtype=torch.float32)
    logits[1] = torch.nan
    targets = torch.zeros(3, dtype=torch.int64, device=logits.device)
    leaf = logits.requires_grad_()
    losses, _ = cross_entropy(leaf, targets)
    losses.sum().backward()
    assert losses.isfinite().tolist() == [True, False, True]
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all(1).tolist() == [True, False, True]
