"""PEFT's random matrices, made again without torch: bit for bit those of the torch installed."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters_store.peft import generator
from adapters_store.peft.generator import (
    ERAS,
    HALVES,
    Era,
    Half,
    Projections,
    Twister,
    randlora_projections,
    rounded,
    sparse_randlora_projections,
    vera_projections,
)
from adapters_store.store_errors import InvalidCheckpoint

HERE: Era = "2.12" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12) else "2.11"

# key, rank, largest in, largest out: wide, tall, square, and keys that torch cuts to 32 bits
SIZES = [
    (0, 32, 256, 1024),
    (7, 8, 48, 80),
    (5, 4, 48, 48),
    (2**32 + 5, 3, 17, 5),
    (123456789, 16, 777, 333),
]


def same(made: Projections, a: Tensor, b: Tensor) -> None:
    assert np.array_equal(made.a, a.float().numpy())
    assert np.array_equal(made.b, b.float().numpy())


@pytest.mark.parametrize(("key", "rank", "max_in", "max_out"), SIZES)
def test_vera(key: int, rank: int, max_in: int, max_out: int) -> None:
    random = torch.Generator().manual_seed(key)

    def kaiming(rows: int, columns: int) -> Tensor:
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(columns))
        return torch.empty(rows, columns).uniform_(-bound, bound, generator=random)

    a = kaiming(rank, max_in)
    same(vera_projections(key, rank, max_in, max_out), a, kaiming(max_out, rank))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("key", "rank", "max_in", "max_out"), SIZES)
def test_randlora(key: int, rank: int, max_in: int, max_out: int, half: Half) -> None:
    random = torch.Generator().manual_seed(key)
    narrow, wide = sorted((max_in, max_out))

    def kaiming(*shape: int) -> Tensor:
        empty = torch.empty(shape, dtype=getattr(torch, half))
        return torch.nn.init.kaiming_uniform_(empty, a=math.sqrt(5), generator=random)

    a = kaiming(rank, 1, narrow)
    b = torch.cat([kaiming(wide, 1, rank) for _ in range(-(-narrow // rank))], dim=1)
    made = randlora_projections(key, rank, max_in, max_out, era=HERE, half=half)
    same(made, a / a.std(), b / b.std())


@pytest.mark.parametrize(
    ("size", "half", "sha256"),
    [
        (SIZES[1], "bfloat16", "0c8c6abc95a71f4f"),
        (SIZES[1], "float16", "a1f9e6536658d8bd"),
        (SIZES[3], "bfloat16", "909eedf0642bb026"),
        (SIZES[3], "float16", "65edd07ae98db55d"),
        ((3, 64, 1536, 2048), "bfloat16", "671ae0e336f06dc0"),
        ((3, 64, 1536, 2048), "float16", "8fc10d19fddce9fa"),
    ],
)
def test_randlora_of_torch_2_11(size: tuple[int, int, int, int], half: Half, sha256: str) -> None:
    """The hashes are of what torch 2.11.0 itself made, A and then B as float32."""
    made = randlora_projections(*size, era="2.11", half=half)
    assert hashlib.sha256(made.a.tobytes() + made.b.tobytes()).hexdigest()[:16] == sha256


@pytest.mark.parametrize("half", HALVES)
def test_the_two_eras_have_nothing_in_common(half: Half) -> None:
    old, new = (randlora_projections(1, 16, 256, 256, era=era, half=half).b for era in ERAS)
    assert abs(np.corrcoef(old.ravel(), new.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize(("key", "rank", "max_in", "max_out"), SIZES)
@pytest.mark.parametrize("very", [False, True])
def test_sparse_randlora(key: int, rank: int, max_in: int, max_out: int, very: bool) -> None:
    random = torch.Generator().manual_seed(key)
    narrow, wide = sorted((max_in, max_out))
    sparsity = math.sqrt(narrow) if very else 3

    def ternary(*shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=random)
        signs = torch.zeros(shape)
        signs[drawn < 1 / (2 * sparsity)] = -1
        signs[drawn > 1 - 1 / (2 * sparsity)] = 1
        return signs / signs.std()

    a = ternary(rank, 1, narrow)
    made = sparse_randlora_projections(key, rank, max_in, max_out, sparsity)
    same(made, a, ternary(wide, -(-narrow // rank), rank))


def test_it_does_not_matter_how_much_is_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vera_projections(4, 8, 100, 60)
    monkeypatch.setattr(generator, "_CHUNK", 7)
    parts = vera_projections(4, 8, 100, 60)
    assert np.array_equal(whole.a, parts.a) and np.array_equal(whole.b, parts.b)


def test_fractions_are_torchs() -> None:
    drawn = torch.rand(1000, generator=torch.Generator().manual_seed(11)).numpy()
    assert np.array_equal(Twister(11).fractions(1000, 24).astype(np.float32), drawn)


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_torchs(dtype: Half) -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    values = torch.cat([values, values * 1e-7, torch.tensor([0.0, -0.0, 1.00390625, 65504.0])])
    want = values.to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(rounded(values.numpy(), dtype), want)


def test_what_cannot_be_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A standard deviation half way between two numbers of bfloat16.
    monkeypatch.setattr(generator, "_std", lambda values: 1 + 2**-8)
    with pytest.raises(InvalidCheckpoint, match="save_projection=True"):
        randlora_projections(0, 4, 16, 16, era="2.12", half="bfloat16")
