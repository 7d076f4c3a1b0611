"""VeRA's numbers: its reference against the formula, its units, and odd shapes of the fast path."""

import math

import pytest
import torch

from server.adapters.basis_pairs import make_pair
from server.adapters.method import BasisSize
from server.adapters.vera import Vera
from server.bases.model import BaseModel, TargetLinear
from server.bases.seeded import Basis
from tests.models import tiny_base

BASE = tiny_base("llama")


def linear(in_features: int, out_features: int) -> TargetLinear:
    return TargetLinear("x", torch.nn.Identity(), in_features, out_features)


class Given:
    """`Rows` that were gathered already."""

    slots = None

    def __init__(self, **vectors: torch.Tensor) -> None:
        self._vectors = vectors

    def stored(self, name: str) -> torch.Tensor:
        return self._vectors[name]

    per_token = stored


@pytest.mark.parametrize(
    ("tokens", "rank", "in_features", "out_features"),
    [(1, 1, 1, 1), (3, 7, 13, 5), (32, 64, 48, 80), (17, 100, 31, 2), (2, 3, 80, 64)],
)
def test_the_fast_path_is_the_formula_row_by_row(
    tokens: int, rank: int, in_features: int, out_features: int
) -> None:
    random = torch.Generator().manual_seed(rank)
    x, y = (torch.randn(tokens, n, generator=random) for n in (in_features, out_features))
    d, b = (torch.randn(tokens, n, generator=random) for n in (rank, out_features))
    target = linear(in_features, out_features)
    pair = make_pair(_of_width(target), 5, BasisSize(rank + 9, rank + 9))
    delta = Vera().deltas({"x": (target, Given(d=d, b=b))}, rank, pair)["x"]
    fast = delta(x, x, y.clone())
    for i in range(tokens):
        change = Vera().dense(target, rank, Basis(5), {"d": d[i], "b": b[i]}, 1.0)
        expected = y[i].double() + change @ x[i].double()
        torch.testing.assert_close(fast[i].double(), expected, rtol=1e-4, atol=1e-4)


def _of_width(target: TargetLinear) -> BaseModel:
    """A base whose widest linears are `target`'s; nothing else of it is read."""
    fields = {**BASE.__dict__, "targets": {"x": target}}
    return BaseModel(**fields)


def test_the_reference_is_the_papers_formula() -> None:
    d, b = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0, 3.0])
    a, wide = Basis(9).a(2, 4, torch.float64), Basis(9).b(3, 2, torch.float64)
    change = Vera().dense(linear(4, 3), 2, Basis(9), {"d": d, "b": b}, 0.25)
    by_hand = 0.25 * torch.diag(b.double()) @ wide @ torch.diag(d.double()) @ a
    torch.testing.assert_close(change, by_hand)


@pytest.mark.parametrize("rank", [1, 8, 100, 1024])
@pytest.mark.parametrize("in_features", [36, 384, 14_336])
def test_units_are_powers_of_two_near_kaimings_spread(rank: int, in_features: int) -> None:
    unit = Vera().unit(linear(in_features, 10), rank)["b"]
    assert math.log2(unit).is_integer()
    assert 0.7 < unit / (6 / math.sqrt(in_features * rank)) < 1.42
    values = torch.randn(1000)
    assert torch.equal(values * unit / unit, values)


def test_it_starts_as_no_change() -> None:
    initial = Vera().initial(linear(6, 4), 3, {})
    assert initial["d"].tolist() == pytest.approx([0.1] * 3)
    assert not Vera().dense(linear(6, 4), 3, Basis(1), initial, 1.0).any()
