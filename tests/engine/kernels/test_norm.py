"""The residual sum and the norm, against the plain formula and transformers' module."""

import pytest
import torch
from torch.testing import assert_close
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

pytest.importorskip("triton", reason="triton is not installed")

from server.engine.kernels.norm import add_rms_norm, reference_add_rms_norm
from tests.engine.kernels.near import DEVICE, DTYPES, MARKS, assert_near, noise, wide_view

pytestmark = MARKS
EPS = 1e-5
SHAPES = [(1, 384), (5, 384), (3, 16), (2, 1000), (4, 4096), (1, 16384), (0, 64)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, hidden", SHAPES)
@pytest.mark.parametrize("extra", [0, 24])
def test_it_equals_the_reference(dtype: torch.dtype, tokens: int, hidden: int, extra: int) -> None:
    h = noise(tokens, hidden, dtype=dtype, seed=1)
    delta = noise(tokens, hidden, dtype=dtype, seed=2)
    weight = noise(hidden, dtype=dtype, seed=3)
    expected_h = h.clone()
    expected = reference_add_rms_norm(expected_h, delta, weight, EPS)
    h_view, delta_view = wide_view(h, extra), wide_view(delta, extra)
    x = add_rms_norm(h_view, delta_view, weight, EPS)
    assert x.is_contiguous()
    assert_close(h_view, expected_h, rtol=0, atol=0)
    assert_near(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_delta_the_stream_stays(dtype: torch.dtype) -> None:
    h = noise(7, 384, dtype=dtype)
    before = h.clone()
    module = LlamaRMSNorm(384, EPS).to(device=DEVICE, dtype=dtype).requires_grad_(False)
    module.weight.copy_(noise(384, dtype=dtype, seed=1))
    assert_near(add_rms_norm(h, None, module.weight, EPS), module(before))
    assert torch.equal(h, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [384, 1000])
def test_what_is_added_may_be_normalised_first(dtype: torch.dtype, hidden: int) -> None:
    h, delta = (noise(5, hidden, dtype=dtype, seed=seed) for seed in (1, 2))
    first, second = (Gemma3RMSNorm(hidden, EPS).to(device=DEVICE, dtype=dtype) for _ in range(2))
    with torch.no_grad():
        first.weight.copy_(noise(hidden, dtype=dtype, seed=3))
        second.weight.copy_(noise(hidden, dtype=dtype, seed=4))
        expected_h = h + first(delta)
        expected = second(expected_h)
    gains = [1.0 + norm.weight.detach().float() for norm in (second, first)]
    x = add_rms_norm(h, wide_view(delta, 24), gains[0], EPS, gains[1])
    assert_near(h, expected_h)
    assert_near(x, expected)


def test_a_row_of_zeros_stays_finite() -> None:
    h = torch.zeros(2, 48, device=DEVICE)
    assert torch.equal(add_rms_norm(h, None, torch.ones(48, device=DEVICE), EPS), h)
