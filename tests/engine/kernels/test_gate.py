"""The MLP's gate, against the plain formula."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from server.engine.kernels.mlp_gate import reference_silu_mul, silu_mul
from tests.engine.kernels.near import DTYPES, MARKS, assert_near, noise, wide_view

pytestmark = MARKS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, width", [(1, 16), (3, 384), (2, 1500), (5, 2048), (0, 64)])
@pytest.mark.parametrize("extra", [0, 40])
def test_it_equals_the_reference(dtype: torch.dtype, tokens: int, width: int, extra: int) -> None:
    gate_up = wide_view(4 * noise(tokens, 2 * width, dtype=dtype), extra)
    act = silu_mul(gate_up, width)
    assert act.is_contiguous()
    assert_near(act, reference_silu_mul(gate_up, width))


@pytest.mark.filterwarnings("ignore:overflow")  # numpy says aloud what a device does silently
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_gates_do_not_overflow(dtype: torch.dtype) -> None:
    gate_up = noise(2, 64, dtype=dtype)
    gate_up[:, 0], gate_up[:, 1] = -3e4, 3e4
    assert_near(silu_mul(gate_up, 32), reference_silu_mul(gate_up, 32))
