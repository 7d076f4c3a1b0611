"""The MLP's gate, against the plain formula."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from server.engine.kernels.mlp_gate import gate_mul, reference_gate_mul
from tests.engine.kernels.near import DTYPES, MARKS, assert_near, noise, wide_view

pytestmark = MARKS


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, width", [(1, 16), (3, 384), (2, 1500), (5, 2048), (0, 64)])
@pytest.mark.parametrize("extra, is_gelu", [(0, False), (40, False), (40, True)])
def test_it_equals_the_reference(
    dtype: torch.dtype, tokens: int, width: int, extra: int, is_gelu: bool
) -> None:
    gate_up = wide_view(4 * noise(tokens, 2 * width, dtype=dtype), extra)
    act = gate_mul(gate_up, width, is_gelu)
    assert act.is_contiguous()
    assert_near(act, reference_gate_mul(gate_up, width, is_gelu))


@pytest.mark.filterwarnings("ignore:overflow")  # numpy says aloud what a device does silently
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_gelu", [False, True])
def test_far_gates_do_not_overflow(dtype: torch.dtype, is_gelu: bool) -> None:
    gate_up = noise(2, 64, dtype=dtype)
    gate_up[:, 0], gate_up[:, 1] = -3e4, 3e4
    assert_near(gate_mul(gate_up, 32, is_gelu), reference_gate_mul(gate_up, 32, is_gelu))
