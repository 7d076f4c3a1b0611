"""RandLoRA's numbers: the reference against the formula and PEFT, the fast paths against it."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from server.adapters.methods.method import BasisPair, Delta, Run
from server.adapters.methods.randlora import randlora_serving
from server.adapters.methods.randlora.randlora import GAIN, GAMMA_INITIAL, RandLora
from server.adapters.methods.row_shares import Shares
from server.bases.model import TargetLinear
from server.bases.seeded_matrices import Basis

SHAPES = [(24, 24), (24, 40), (40, 24), (23, 37), (37, 23), (1, 5), (5, 1)]  # [in, out]
VARIANTS = [
    RandLora(),
    RandLora(sparsity=3),
    RandLora(sparsity=6),
    RandLora(sparsity=24**0.5),
    RandLora(pairing="peft"),
]
by_shape = pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
SERVED = [RandLora(), RandLora(sparsity=3), RandLora(sparsity=6, pairing="peft")]
by_variant = pytest.mark.parametrize("method", VARIANTS, ids=str)


def linear(in_features: int, out_features: int) -> TargetLinear:
    return TargetLinear("x", torch.nn.Identity(), in_features, out_features)


def basis_of(method: RandLora, seed: int = 5) -> Basis:
    return Basis(seed, method.basis(seed).spec)


def pair_of(
    method: RandLora, target: TargetLinear, rank: int, dtype: torch.dtype = torch.float32
) -> BasisPair:
    """Wider and longer than the layer reads, as a pair that is shared is."""
    size, basis = method.basis_size(target, rank), basis_of(method)
    widest = max(target.in_features, target.out_features) + 9
    b = basis.b(widest, size.b_rank + 5, dtype)
    return BasisPair(basis.a(size.a_rank + 3, widest, dtype), b.t().contiguous())


def drawn(
    method: RandLora,
    target: TargetLinear,
    rank: int,
    many: int = 1,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random vectors of `many` adapters [many, *shape]: updates of the size of the identity."""
    random = torch.Generator().manual_seed(many)
    narrow = min(target.in_features, target.out_features)
    spread = {"lambda": 1.0, "gamma": 2 / (narrow * basis_of(method).variance)}
    return {
        name: (torch.randn(many, *shape, generator=random) * spread[name]).to(dtype)
        for name, shape in method.shapes(target, rank).items()
    }


def change(
    method: RandLora, target: TargetLinear, rank: int, vectors: Mapping[str, Tensor]
) -> Tensor:
    return method.dense(target, rank, basis_of(method), vectors, 1.0)


class Served:
    """`Rows` of tokens whose adapters stand in `rows`."""

    def __init__(self, stored: Mapping[str, Tensor], rows: Sequence[int]) -> None:
        self._stored = stored
        self.rows = torch.tensor(rows)
        starts = [i for i, row in enumerate(rows) if i == 0 or rows[i - 1] != row]
        stops = [*starts[1:], len(rows)]
        self.runs = [Run(rows[a], a, b) for a, b in zip(starts, stops, strict=True)]
        self.shares: Shares | None = None

    def stored(self, name: str) -> Tensor:
        return self._stored[name]

    def per_token(self, name: str) -> Tensor:
        return self._stored[name][self.rows]


class Trained:
    """`Rows` in training."""

    rows = None
    runs: Sequence[Run] = ()
    shares: Shares | None = None

    def __init__(self, **vectors: Tensor) -> None:
        self._vectors = vectors

    def stored(self, name: str) -> Tensor:
        return self._vectors[name]

    per_token = stored


def test_the_reference_is_the_papers_formula_for_a_last_block_that_sticks_out() -> None:
    """in 3, rank 2: two blocks read four columns of B, one more than there are inputs."""
    target, method = linear(3, 4), RandLora()
    vectors = {name: value[0] for name, value in drawn(method, target, 2).items()}
    lambda_, gamma = (vectors[name].double() for name in ("lambda", "gamma"))
    a, b = Basis(5).a(2, 3, torch.float64), Basis(5).b(4, 4, torch.float64)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for out in range(4):
        for into in range(3):
            expected[out, into] = 0.5 * sum(
                b[out, j * 2 + k] * lambda_[j, k] * a[k, into] * gamma[j, into]
                for j in range(2)
                for k in range(2)
            )
    torch.testing.assert_close(method.dense(target, 2, Basis(5), vectors, 0.5), expected)
    turned = method.dense(linear(4, 3), 2, Basis(5), vectors, 0.5)
    torch.testing.assert_close(turned, expected.t())


@by_shape
@pytest.mark.parametrize("rank", [1, 4, 7, 50])
def test_it_trains_as_many_numbers_as_the_paper_counts(
    in_features: int, out_features: int, rank: int
) -> None:
    narrow = min(in_features, out_features)
    n = math.ceil(narrow / rank)
    shapes = RandLora().shapes(linear(in_features, out_features), rank)
    assert sum(map(math.prod, shapes.values())) == n * (rank + narrow)


@pytest.mark.parametrize(
    ("in_features", "out_features"), [(48, 48), (48, 80), (80, 48), (47, 61), (61, 47)]
)
@pytest.mark.parametrize(
    ("method", "rank"),
    [
        (RandLora(), 1),
        (RandLora(), 7),
        (RandLora(pairing="peft"), 7),
        (RandLora(sparsity=3), 24),
        (RandLora(sparsity=6), 42),
        (RandLora(sparsity=48**0.5), 60),
    ],
    ids=str,
)
def test_the_update_has_full_rank(
    method: RandLora, rank: int, in_features: int, out_features: int
) -> None:
    target = linear(in_features, out_features)
    vectors = {name: value[0] for name, value in drawn(method, target, rank).items()}
    update = change(method, target, rank, vectors)
    assert update.shape == (out_features, in_features)
    assert torch.linalg.matrix_rank(update).item() == min(in_features, out_features)


def test_a_sparse_basis_of_small_rank_misses_features_and_full_rank() -> None:
    """A feature that no row of A reads stays as it is: (1 - 1 / s)^rank of them do."""
    target, method = linear(400, 500), RandLora(sparsity=20)
    vectors = {name: value[0] for name, value in drawn(method, target, 32).items()}
    missed = ~basis_of(method).a(32, 400, torch.float64).any(0)
    assert missed.sum().item() == pytest.approx(400 * (1 - 1 / 20) ** 32, rel=0.3)
    update = change(method, target, 32, vectors)
    assert not update[:, missed].any()
    assert torch.linalg.matrix_rank(update).item() <= 400 - missed.sum().item()


@by_variant
def test_a_block_of_a_whole_layer_has_no_more_than_its_rank(method: RandLora) -> None:
    """The rank is full because of the sum: one gamma for all blocks makes it that of A."""
    target = linear(24, 40)
    vectors = {name: value[0] for name, value in drawn(method, target, 4).items()}
    vectors["gamma"] = vectors["gamma"][:1].expand(6, -1)
    assert torch.linalg.matrix_rank(change(method, target, 4, vectors)).item() <= 4


POPULARITY = {
    "identical": [1] * 9,
    "distinct": [0, 1, 2, 3, 4, 5],
    "skewed": [3] * 13 + [0, 5, 0] + [2] * 2 + [3] * 4,
    "alone": [4],
}


@by_shape
@pytest.mark.parametrize("method", SERVED, ids=str)
@pytest.mark.parametrize("rows", POPULARITY.values(), ids=POPULARITY)
@pytest.mark.parametrize("rank", [5, 24])
def test_serving_is_the_reference_token_by_token(
    method: RandLora, in_features: int, out_features: int, rows: list[int], rank: int
) -> None:
    target = linear(in_features, out_features)
    stored = drawn(method, target, rank, many=6)
    x, y = torch.randn(len(rows), in_features), torch.randn(len(rows), out_features)
    served = {"x": (target, Served(stored, rows))}
    delta = method.deltas(served, rank, {"x": pair_of(method, target, rank)})["x"]
    with torch.no_grad():
        fast = delta(x, x, y.clone())
    for token, row in enumerate(rows):
        update = change(method, target, rank, {name: v[row] for name, v in stored.items()})
        expected = y[token].double() + update @ x[token].double()
        torch.testing.assert_close(fast[token].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whole_from", [0.0, 1e9], ids=["whole", "gathered"])
@pytest.mark.parametrize("entries", [1, 1 << 22], ids=["a token at a time", "at once"])
@pytest.mark.parametrize("method", [RandLora(), RandLora(sparsity=6, pairing="peft")], ids=str)
@pytest.mark.parametrize(("in_features", "out_features"), [(37, 64), (64, 37)])
def test_both_ways_to_serve_agree_in_bfloat16(
    method: RandLora,
    in_features: int,
    out_features: int,
    entries: int,
    whole_from: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(randlora_serving, "GATHERED_ENTRIES", entries)
    monkeypatch.setitem(randlora_serving.WHOLE_TOKENS_PER_RANK, "cpu", whole_from)
    target, rank, rows = linear(in_features, out_features), 5, POPULARITY["skewed"]
    stored = drawn(method, target, rank, many=6, dtype=torch.bfloat16)
    x = torch.randn(len(rows), in_features).bfloat16()
    pair = pair_of(method, target, rank, torch.bfloat16)
    delta = method.deltas({"x": (target, Served(stored, rows))}, rank, {"x": pair})["x"]
    with torch.no_grad():
        fast = delta(x, x, torch.zeros(len(rows), out_features, dtype=torch.bfloat16)).double()
    expected = torch.stack(
        [
            change(method, target, rank, {name: v[row] for name, v in stored.items()})
            @ x[token].double()
            for token, row in enumerate(rows)
        ]
    )
    assert (fast - expected).norm() < 0.02 * expected.norm()


def test_short_runs_are_gathered_together_and_long_ones_are_whole() -> None:
    runs = [Run(1, 0, 2), Run(2, 2, 5), Run(7, 5, 500), Run(1, 500, 501)]
    spans = randlora_serving.spans_of(runs, 32, torch.device("cpu"))
    assert spans == ((None, 0, 5), (7, 5, 500), (None, 500, 501))


@by_shape
@pytest.mark.parametrize("method", SERVED, ids=str)
@pytest.mark.parametrize("rank", [1, 5, 24])
def test_gradients_are_those_of_the_plain_formula(
    method: RandLora, in_features: int, out_features: int, rank: int
) -> None:
    target = linear(in_features, out_features)
    leaves = [v[0].double() for v in drawn(method, target, rank).values()]
    leaves += [torch.randn(3, in_features).double(), torch.randn(3, out_features).double()]
    lambda_, gamma, x, y = (leaf.requires_grad_() for leaf in leaves)
    pair = pair_of(method, target, rank, torch.float64)
    trained = {"x": (target, Trained(**{"lambda": lambda_, "gamma": gamma}))}
    fast = method.deltas(trained, rank, {"x": pair})["x"](x, x, y)
    plain = y + x @ change(method, target, rank, {"lambda": lambda_, "gamma": gamma}).t()
    torch.testing.assert_close(fast, plain)
    weights = torch.randn(plain.shape).double()
    got, expected = (
        torch.autograd.grad((result * weights).sum(), (lambda_, gamma, x, y))
        for result in (fast, plain)
    )
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_input_without_gradient_costs_none() -> None:
    target, method = linear(6, 8), RandLora()
    vectors = {name: v[0].requires_grad_() for name, v in drawn(method, target, 2).items()}
    x = torch.randn(3, 6)
    delta = method.deltas({"x": (target, Trained(**vectors))}, 2, {"x": pair_of(method, target, 2)})
    delta["x"](x, x, torch.zeros(3, 8)).sum().backward()
    assert x.grad is None
    assert all(v.grad is not None and v.grad.any() for v in vectors.values())


def saved_bytes(delta: Delta, x: Tensor, y: Tensor, shared: Sequence[Tensor]) -> int:
    """What one layer holds for the backward pass, each storage once, `shared` ones not at all."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        delta(x, x, y)
    for tensor in shared:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


@pytest.mark.parametrize(("in_features", "out_features"), [(96, 96), (96, 160), (160, 96)])
@pytest.mark.parametrize("method", [RandLora(), RandLora(pairing="peft")], ids=str)
def test_training_keeps_what_met_a_and_nothing_of_its_size(
    method: RandLora, in_features: int, out_features: int
) -> None:
    target, rank, tokens = linear(in_features, out_features), 8, 50
    vectors = {name: v[0].requires_grad_() for name, v in drawn(method, target, rank).items()}
    pair = pair_of(method, target, rank)
    delta = method.deltas({"x": (target, Trained(**vectors))}, rank, {"x": pair})["x"]
    x = torch.randn(tokens, in_features, requires_grad=True)
    held = saved_bytes(delta, x, torch.zeros(tokens, out_features), (pair.a, pair.bt))
    assert held == 4 * (tokens * 96 + 12 * (8 + 96)), "96 = min(in, out) = n * rank"


def test_dropout_is_drawn_once_for_siblings_and_only_while_gradients_are_recorded() -> None:
    target, method = linear(32, 32), RandLora()
    vectors = {name: v[0].requires_grad_() for name, v in drawn(method, target, 4).items()}
    pair = pair_of(method, target, 4)
    layers = {name: (target, Trained(**vectors)) for name in ("q", "k")}
    deltas = method.deltas(layers, 4, dict.fromkeys(layers, pair), dropout=0.5)
    x, y = torch.randn(6, 32), torch.zeros(6, 32)
    whole = x.double() @ change(method, target, 4, vectors).t()
    first, second = (deltas[name](x, x, y) for name in ("q", "k"))
    assert torch.equal(first, second)
    assert not torch.allclose(first.double(), whole, atol=1e-2)
    assert not torch.equal(deltas["q"](x.clone(), x, y), first), "another input, another draw"
    with torch.no_grad():
        torch.testing.assert_close(deltas["q"](x, x, y).double(), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_starts_as_no_change_that_can_learn(variant: RandLora) -> None:
    target = linear(24, 40)
    start = variant.initial(target, 5, basis_of(variant))
    assert not change(variant, target, 5, start).any()
    assert set(start["gamma"].unique().tolist()) == {GAMMA_INITIAL}
    assert {name: v.shape for name, v in start.items()} == variant.shapes(target, 5)


@pytest.mark.parametrize("rank", [8, 32, 64])
@pytest.mark.parametrize(("in_features", "out_features"), [(96, 96), (400, 100), (128, 256)])
@pytest.mark.parametrize("sparsity", [None, 3, 20])
def test_a_unit_of_lambda_is_as_large_an_update_everywhere(
    sparsity: float | None, rank: int, in_features: int, out_features: int
) -> None:
    """Random signs of one size give GAIN / sqrt(min) a weight, were units not powers of two."""
    method, target = RandLora(sparsity), linear(in_features, out_features)
    unit = method.unit(target, rank)
    assert math.log2(unit["lambda"]).is_integer()
    random = torch.Generator().manual_seed(rank)
    shape = method.shapes(target, rank)["lambda"]
    signs = torch.randint(2, shape, generator=random) * 2 - 1
    start = method.initial(target, rank, basis_of(method))
    vectors = {"lambda": signs * unit["lambda"], "gamma": start["gamma"] * unit["gamma"]}
    weight = change(method, target, rank, vectors).square().mean().sqrt().item()
    assert 0.6 < weight / (GAIN / min(in_features, out_features) ** 0.5) < 1.6


@pytest.mark.parametrize(("in_features", "out_features"), [(37, 64), (64, 37)])
def test_gradients_survive_bfloat16(in_features: int, out_features: int) -> None:
    target, method = linear(in_features, out_features), RandLora()
    leaves = [v[0] for v in drawn(method, target, 5, dtype=torch.bfloat16).values()]
    x = torch.randn(20, in_features).bfloat16()
    pair, y = pair_of(method, target, 5, torch.bfloat16), torch.zeros(20, out_features)

    low = {k: v.clone().requires_grad_() for k, v in zip(("lambda", "gamma"), leaves, strict=True)}
    delta = method.deltas({"x": (target, Trained(**low))}, 5, {"x": pair})["x"]
    delta(x, x, y.bfloat16()).square().sum().backward()

    exact = {k: v.detach().double().requires_grad_() for k, v in low.items()}
    (x.double() @ change(method, target, 5, exact).t()).square().sum().backward()
    for name, value in low.items():
        expected = exact[name].grad
        assert value.grad is not None and expected is not None
        assert (value.grad.double() - expected).norm() < 0.03 * expected.norm()
