"""Rows times the vector of their own adapter: the kernel and its way back, against the formula."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from server.adapters.methods.row_shares import Shares, reference_scaled
from server.kernels.scaled_rows import scaled_rows
from tests.engine.kernels.near import DEVICE, DTYPES, MARKS, assert_near, noise

pytestmark = MARKS
ALONE, ALIKE, UNLIKE = (70,), (66, 66, 66), (1, 130, 64, 7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [None, ALONE, ALIKE, UNLIKE])
@pytest.mark.parametrize("width, adds", [(5, False), (200, True), (128, False)])
def test_it_equals_the_reference(
    dtype: torch.dtype, tokens: tuple[int, ...] | None, width: int, adds: bool
) -> None:
    shares = None if tokens is None else Shares(tokens, torch.device(DEVICE))
    rows, many = (70, ()) if tokens is None else (sum(tokens), (len(tokens),))
    x, given, y = (noise(rows, width, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    # Columns of a wider tensor, as the layers of one stack are.
    vectors = noise(*many, width + 9, dtype=dtype, seed=4)[..., 3 : width + 3]
    found, expected = (
        both_ways(function, [x, vectors] + [y] * adds, shares, given)
        for function in (kernel, reference_scaled)
    )
    for place, (mine, plain) in enumerate(zip(found, expected, strict=True)):
        if place == 2:  # the vectors' gradient is a sum over rows
            mine, plain = mine / rows**0.5, plain / rows**0.5
        assert_near(mine, plain)


def kernel(x: Tensor, vectors: Tensor, shares: Shares | None, onto: Tensor | None) -> Tensor:
    if shares is None:
        return scaled_rows(x, vectors, onto, None, len(x))
    return scaled_rows(x, vectors, onto, shares.starts, shares.most)


def both_ways(
    function: object, inputs: list[Tensor], shares: Shares | None, given: Tensor
) -> list[Tensor]:
    assert callable(function)
    leaves = [each.detach().requires_grad_() for each in inputs]
    out = function(*leaves[:2], shares, leaves[2] if len(leaves) == 3 else None)
    return [out, *torch.autograd.grad(out, leaves, given)]


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, in the interpreter
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nothing_reaches_another_share(poison: float) -> None:
    shares = Shares((3, 5), torch.device(DEVICE))
    x = noise(8, 40, dtype=torch.float32).requires_grad_()
    vectors = noise(2, 40, dtype=torch.float32, seed=1)
    vectors[0] = poison
    vectors.requires_grad_()
    out = kernel(x, vectors, shares, None)
    out.sum().backward()
    assert x.grad is not None
    assert vectors.grad is not None
    assert out[3:].isfinite().all()
    assert x.grad[3:].isfinite().all()
    assert vectors.grad.isfinite().all()
