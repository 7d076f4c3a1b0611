"""VeRA's numbers: its reference against the formula, its variants, and the fast path."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from server.adapters.methods.method import BasisPair
from server.adapters.methods.registry import method_named
from server.adapters.methods.trained_rows import TrainedRows as LearningRows
from server.adapters.methods.trained_rows import TrainedVectors
from server.adapters.methods.vera.vera import Vera
from server.bases.seeded_matrices import SPEC, Basis
from server.errors import InvalidAdapter
from tests.adapters.rows import StoredRows, TrainedRows, bare_linear, made_pair

VARIANTS = [Vera(), Vera("d"), Vera("b", d_initial=0.3), Vera(per_layer=True)]
SHAPES = [(1, 1, 1, 1), (3, 7, 13, 5), (32, 64, 48, 80), (17, 100, 31, 2), (2, 3, 80, 64)]


@dataclass(frozen=True)
class Case:
    """One adapter's file, and what it adds to the weight."""

    folded: dict[str, Tensor]
    dense: Tensor


def draw(method: Vera, rank: int, in_features: int, out_features: int, seed: int) -> Case:
    """A random adapter of this variant over the matrices of seed 5."""
    linear, random = bare_linear(in_features, out_features), torch.Generator().manual_seed(seed)
    vectors = {
        name: torch.randn(shape, generator=random)
        for name, shape in method.shapes(linear, rank).items()
    }
    scale = float(torch.randn((), generator=random))
    return Case(
        method.fold(linear, rank, vectors, scale),
        method.dense(linear, rank, Basis(5), vectors, scale),
    )


def pair_for(rank: int, width: int) -> BasisPair:
    size = Vera().basis_size(bare_linear(width, width), rank)
    return made_pair(Basis(5), size, width, torch.float32)


@pytest.mark.parametrize(("tokens", "rank", "in_features", "out_features"), SHAPES)
def test_one_product_serves_variants_and_ranks_row_by_row(
    tokens: int, rank: int, in_features: int, out_features: int
) -> None:
    ranks = [rank, max(1, rank // 2), rank]
    cases = [
        draw(method, own, in_features, out_features, seed)
        for seed, (method, own) in enumerate(zip(VARIANTS[:3], ranks, strict=True))
    ]
    linear, random = bare_linear(in_features, out_features), torch.Generator().manual_seed(rank)
    stored = {"d": torch.zeros(4, rank), "b": torch.zeros(4, out_features)}  # row 0: the base
    for row, case in enumerate(cases, start=1):
        for name, vector in case.folded.items():
            stored[name][row, : len(vector)] = vector
    picks = torch.randint(0, 4, (tokens,), generator=random).tolist()
    x, y = (torch.randn(tokens, n, generator=random) for n in (in_features, out_features))
    pair = pair_for(rank + 9, max(in_features, out_features) + 3)
    layers = {"x": (linear, StoredRows(picks, **stored))}
    with torch.inference_mode():
        fast = Vera().deltas(layers, rank, {"x": pair})["x"](x, x, y.clone())
    for i, pick in enumerate(picks):
        change = cases[pick - 1].dense @ x[i].double() if pick else 0
        torch.testing.assert_close(fast[i].double(), y[i].double() + change, rtol=1e-4, atol=1e-3)


def test_the_reference_is_the_papers_formula() -> None:
    d, b = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0, 3.0])
    a, wide = Basis(9).a(2, 4, torch.float64), Basis(9).b(3, 2, torch.float64)
    linear = bare_linear(4, 3)
    change = Vera().dense(linear, 2, Basis(9), {"d": d, "b": b}, 0.25)
    by_hand = 0.25 * torch.diag(b.double()) @ wide @ torch.diag(d.double()) @ a
    torch.testing.assert_close(change, by_hand)
    only_b = Vera("b", d_initial=0.5).dense(linear, 2, Basis(9), {"b": b}, 1.0)
    torch.testing.assert_close(only_b, torch.diag(b.double()) @ wide @ (0.5 * a))
    only_d = Vera("d").dense(linear, 2, Basis(9), {"d": d}, 1.0)
    torch.testing.assert_close(only_d, 2 * wide @ torch.diag(d.double()) @ a)  # 6 / sqrt(4 * 2)


@pytest.mark.parametrize("rank", [1, 8, 100, 1024])
@pytest.mark.parametrize("in_features", [36, 384, 14_336])
def test_units_are_powers_of_two_near_kaimings_spread(rank: int, in_features: int) -> None:
    linear = bare_linear(in_features, 10)
    unit = Vera().unit(linear, rank)["b"]
    assert math.log2(unit).is_integer()
    assert 0.7 < unit / (6 / math.sqrt(in_features * rank)) < 1.42
    values = torch.randn(1000)
    assert torch.equal(values * unit / unit, values)
    constant = Vera("d").fold(linear, rank, {"d": torch.zeros(rank)}, 1.0)["b"]
    assert torch.equal(constant, torch.full((10,), unit)), "d alone trains over a parameter of 1"


@pytest.mark.parametrize("method", VARIANTS)
def test_it_starts_as_no_change_and_can_leave_there(method: Vera) -> None:
    linear = bare_linear(6, 4)
    initial = method.initial(linear, 3, Basis(1, layer=0))
    assert {name: value.shape for name, value in initial.items()} == method.shapes(linear, 3)
    assert not method.dense(linear, 3, Basis(1), initial, 1.0).any()
    parameters = {name: value.requires_grad_() for name, value in initial.items()}
    folded = method.fold(linear, 3, parameters, 1.0)
    x, y = torch.randn(5, 6), torch.randn(5, 4)
    layers = {"x": (linear, TrainedRows(**folded))}
    method.deltas(layers, 3, {"x": pair_for(3, 6)})["x"](x, x, y).sum().backward()
    assert any(value.grad is not None and value.grad.any() for value in parameters.values())


@pytest.mark.parametrize(("trained", "count"), [("d+b", 3 + 4), ("d", 3), ("b", 4)])
def test_only_what_is_trained_is_stored(trained: str, count: int) -> None:
    linear = bare_linear(6, 4)
    shapes = Vera(trained).shapes(linear, 3)
    assert sum(math.prod(shape) for shape in shapes.values()) == count
    assert set(shapes) == set(trained.split("+")) == set(Vera(trained).unit(linear, 3))
    assert Vera(trained).padded_shapes(linear, 8) == {"d": (8,), "b": (4,)}


@pytest.mark.parametrize("method", VARIANTS[:3])
def test_gradients_are_those_of_the_formula(method: Vera) -> None:
    linear, random = bare_linear(13, 7), torch.Generator().manual_seed(3)
    x, y, up = (torch.randn(5, n, generator=random) for n in (13, 7, 7))
    vectors = {
        name: torch.randn(shape, generator=random).requires_grad_()
        for name, shape in method.shapes(linear, 4).items()
    }
    folded = SimpleNamespace(shares=None, folded={"x": method.fold(linear, 4, vectors, 0.5)})
    layers = {"x": (linear, LearningRows(cast(TrainedVectors, folded), "x"))}
    fast = method.deltas(layers, 4, {"x": pair_for(4, 13)})["x"](x, x, y)
    ours = torch.autograd.grad((fast * up).sum(), list(vectors.values()))
    plain = y + x @ method.dense(linear, 4, Basis(5), vectors, 0.5).float().t()
    theirs = torch.autograd.grad((plain * up).sum(), list(vectors.values()))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_layers_share_a_product_only_if_they_read_the_same_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products = 0
    plain_mm = torch.mm

    def counted(left: Tensor, right: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return plain_mm(left, right)

    monkeypatch.setattr(torch, "mm", counted)
    x = torch.randn(3, 8)
    linears = {path: bare_linear(8, 6, path) for path in "qkv"}
    rows = TrainedRows(d=torch.ones(2), b=torch.ones(6))
    layers = {path: (linear, rows) for path, linear in linears.items()}

    def run(bases: dict[str, BasisPair]) -> dict[str, Tensor]:
        made = Vera().deltas(layers, 2, bases)
        return {path: delta(x, x, torch.zeros(3, 6)) for path, delta in made.items()}

    shared = run(dict.fromkeys("qkv", pair_for(2, 8)))
    assert products == 1 + 3
    assert torch.equal(shared["q"], shared["v"])

    products = 0
    own = {
        path: made_pair(Basis(5, layer=i), Vera().basis_size(linears[path], 2), 8, torch.float32)
        for i, path in enumerate("qkv")
    }
    unique = run(own)
    assert products == 3 + 3
    for i, path in enumerate("qkv"):
        change = Vera().dense(
            linears[path], 2, Basis(5, layer=i), {"d": torch.ones(2), "b": torch.ones(6)}, 1.0
        )
        torch.testing.assert_close(unique[path], x @ change.float().t(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(unique["q"], unique["k"], atol=0.1)


def test_dropout_thins_out_what_is_trained_on_only() -> None:
    linear, x = bare_linear(8, 6), torch.ones(4, 8)
    layers = {"x": (linear, TrainedRows(d=torch.ones(2), b=torch.ones(6)))}
    delta = Vera().deltas(layers, 2, {"x": pair_for(2, 8)}, dropout=0.5)["x"]
    plain = Vera().deltas(layers, 2, {"x": pair_for(2, 8)})["x"](x, x, torch.zeros(4, 6))
    assert not torch.allclose(delta(x, x, torch.zeros(4, 6)), plain)
    with torch.inference_mode():
        assert torch.equal(delta(x, x, torch.zeros(4, 6)), plain)


@pytest.mark.parametrize("method", VARIANTS)
def test_options_come_back_from_a_manifest(method: Vera) -> None:
    assert method_named("vera", {**method.options, "dropout": "0.1"}) == method
    basis = method.basis(9)
    assert (basis.spec, basis.seed, basis.per_layer) == (SPEC, 9, method.per_layer)
    assert method.default_scale(64) == 1.0
    assert method.padded_rank(3, 64) == 64


def test_manifests_of_older_adapters_are_read() -> None:
    assert Vera.of({"d_initial": "0.1", "dropout": "0.0"}) == Vera()
    assert Vera.of({}) == Vera()
    assert Vera.of({"d_initial": "-2e-3"}).d_initial == -0.002


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"trained": "a"}, "trained='a'"),
        ({"basis": "unique"}, "basis='unique'"),
        ({"d_initial": "much"}, "d_initial='much'"),
        ({"d_initial": "nan"}, "d_initial=nan"),
    ],
)
def test_an_option_that_does_not_exist_is_named(options: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidAdapter, match=named):
        Vera.of(options)


def test_a_start_from_which_nothing_is_learnt_is_refused() -> None:
    with pytest.raises(InvalidAdapter, match="d_initial=0"):
        Vera(d_initial=0.0).initial(bare_linear(6, 4), 3, Basis(1))
