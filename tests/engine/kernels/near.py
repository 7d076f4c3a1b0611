"""How near a kernel must come to its reference; where and in what dtypes they are compared."""

import os

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MARKS = [pytest.mark.gpu] if DEVICE == "cuda" else []
if DEVICE == "cpu" and not _INTERPRETED:
    MARKS = [pytest.mark.skip(reason="a CUDA device that torch does not see")]
# The interpreter's products of bfloat16 are wrong: it takes the bits for integers.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal but for the last bit or two of their dtype."""
    tolerance = _TOLERANCE[expected.dtype]
    assert_close(found, expected, rtol=tolerance, atol=tolerance)


def noise(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Standard normal numbers on `DEVICE`, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device=DEVICE, dtype=dtype)


def wide_view(x: Tensor, extra: int) -> Tensor:
    """`x` as the first columns of a wider tensor, whose others are nan: nobody may read them."""
    rows, width = x.shape
    wide = torch.full((rows, width + extra), torch.nan, dtype=x.dtype, device=x.device)
    wide[:, :width] = x
    return wide[:, :width]
