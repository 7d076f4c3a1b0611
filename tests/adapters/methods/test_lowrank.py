"""LoRA and its halves: the fast paths against plain dense algebra, and what training may move."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.methods.basis_id import NO_BASIS
from server.adapters.methods.lowrank import by_adapter
from server.adapters.methods.lowrank.by_adapter import (
    OWN_PRODUCT_TOKENS,
    ByAdapter,
    own_product_tokens,
)
from server.adapters.methods.lowrank.lowrank import LowRank
from server.adapters.methods.method import BasisPairs
from server.adapters.methods.registry import method_named
from server.bases.model import TargetLinear
from server.bases.seeded_matrices import SPEC, Basis
from server.errors import InvalidAdapter
from tests.adapters.made import Made, merged_logits
from tests.adapters.rows import StoredRows, TrainedRows, bare_linear, made_pair
from tests.models import tiny_base

SEED = 5
VARIANTS = [LowRank("A+B"), LowRank("B"), LowRank("A")]
NAMES = ["lora", "train B", "train A"]
SHAPES = [(1, 1), (13, 5), (48, 80), (31, 2), (80, 64)]  # in, out
OWN_FROM = 4  # tokens: above and below it in what follows
MANY = OWN_FROM + 3
POPULARITY = {
    "one token": [1],
    "identical": [2] * MANY,
    "distinct": [1, 3, 2, 4],
    "distinct out of order, twice": [4, 1, 3, 2] * 2,
    "long runs": [1] * MANY + [3] * MANY,
    "scattered": [1, 2, 3] * MANY,
    "skewed": [4, 2, *[1] * MANY, 3, 2, *[1] * MANY, 4],
    "popular last": [2, 3, 4, *[1] * MANY],
}
RANKS = [0, 7, 3, 8, 1]  # of each stored row, all padded to 8; row 0 is zeros


def bases_for(method: LowRank, linears: Sequence[TargetLinear], padded_rank: int) -> BasisPairs:
    """One pair for all, wider and deeper than any reads."""
    width = 3 + max(max(linear.in_features, linear.out_features) for linear in linears)
    pair = made_pair(Basis(SEED), method.basis_size(linears[0], padded_rank), width, torch.float32)
    return {linear.path: pair for linear in linears}


def draw(method: LowRank, linear: TargetLinear, rank: int, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=random)
        for name, shape in method.shapes(linear, rank).items()
    }


def stored_rows(
    method: LowRank, linear: TargetLinear, padded_rank: int, scale: float
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Adapters of `RANKS` padded to one rank, and the dense change of each."""
    stored = {
        name: torch.zeros(len(RANKS), *shape)
        for name, shape in method.padded_shapes(linear, padded_rank).items()
    }
    changes = [torch.zeros(linear.out_features, linear.in_features, dtype=torch.float64)]
    for row, rank in enumerate(RANKS[1:], start=1):
        vectors = draw(method, linear, rank, row)
        for name, value in method.fold(linear, rank, vectors, scale).items():
            stored[name][row][tuple(slice(size) for size in value.shape)] = value
        changes.append(method.dense(linear, rank, Basis(SEED), vectors, scale))
    return stored, changes


@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", VARIANTS, ids=NAMES)
@pytest.mark.parametrize("own_from", [1, OWN_FROM, 10**6], ids=["own", "some own", "gathered"])
def test_serving_is_the_dense_change_row_by_row(
    own_from: int,
    method: LowRank,
    shape: tuple[int, int],
    popularity: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OWN_PRODUCT_TOKENS, "cpu", own_from)
    linear, picks, padded_rank = bare_linear(*shape), POPULARITY[popularity], 8
    stored, changes = stored_rows(method, linear, padded_rank, scale=-0.7)
    random = torch.Generator().manual_seed(len(picks))
    x, y = (torch.randn(len(picks), n, generator=random) for n in shape)
    layers = {"x": (linear, StoredRows(picks, **stored))}
    delta = method.deltas(layers, padded_rank, bases_for(method, [linear], padded_rank))["x"]
    with torch.inference_mode():
        fast = delta(x, x, y.clone())
    for i, pick in enumerate(picks):
        expected = y[i].double() + changes[pick] @ x[i].double()
        torch.testing.assert_close(fast[i].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", OWN_PRODUCT_TOKENS)
def test_the_larger_the_rank_the_sooner_an_adapter_gets_its_own_products(device: str) -> None:
    on = torch.device(device)
    assert own_product_tokens(8, on) == OWN_PRODUCT_TOKENS[device]
    least = [own_product_tokens(rank, on) for rank in (1, 2, 8, 64, 4096)]
    assert least == sorted(least, reverse=True)
    assert least[-1] == 1


@pytest.mark.parametrize("own_from", [10, 10**6])
def test_no_more_is_gathered_at_a_time_than_memory_is_for(
    own_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices, x = torch.randn(5, 7, 6), torch.randn(30, 6)
    rows = StoredRows([1, 2, 3, 1, 4, 1] * 5, M=matrices)
    assert rows.rows is not None
    picked, most = rows.rows, 0
    plain_bmm = torch.bmm

    def watched(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
        nonlocal most
        most = max(most, left.numel())
        return plain_bmm(left, right, out=out)

    monkeypatch.setattr(torch, "bmm", watched)
    monkeypatch.setattr(by_adapter, "GATHERED_ENTRIES", 3 * 7 * 6 + 1)
    order = ByAdapter(picked, rows.runs, own_from)
    product = order.unsort(order.product(order.sort(x), rows, "M"))
    torch.testing.assert_close(product, torch.einsum("tmn,tn->tm", matrices[picked], x))
    assert most == 3 * 7 * 6


@pytest.mark.parametrize("method", VARIANTS, ids=NAMES)
def test_siblings_and_a_new_input_get_their_own_answers(method: LowRank) -> None:
    linears = [bare_linear(12, 6, "q"), bare_linear(12, 9, "k"), bare_linear(6, 12, "down")]
    picks = [1, 2, 3, 1]
    stored = {linear.path: stored_rows(method, linear, 8, 1.0) for linear in linears}
    layers = {
        linear.path: (linear, StoredRows(picks, **stored[linear.path][0])) for linear in linears
    }
    deltas = method.deltas(layers, 8, bases_for(method, linears, 8))
    for _ in range(2):  # a second step through the same deltas
        hidden = torch.randn(4, 12)
        for linear in linears:
            x = hidden if linear.in_features == 12 else torch.randn(4, 6)
            with torch.inference_mode():
                fast = deltas[linear.path](x, x, torch.zeros(4, linear.out_features))
            changes = torch.stack([stored[linear.path][1][pick] for pick in picks]).float()
            plain = torch.einsum("toi,ti->to", changes, x)
            torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_siblings_share_the_product_by_a_frozen_a(monkeypatch: pytest.MonkeyPatch) -> None:
    method, x, products = LowRank("B"), torch.randn(3, 8), 0
    linears = [bare_linear(8, 6, path) for path in "qkv"]
    layers = {
        linear.path: (linear, TrainedRows(**draw(method, linear, 4, 1))) for linear in linears
    }
    plain_mm = torch.mm

    def counted(left: Tensor, right: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return plain_mm(left, right)

    monkeypatch.setattr(torch, "mm", counted)
    for delta in method.deltas(layers, 4, bases_for(method, linears, 4)).values():
        delta(x, x, torch.zeros(3, 6))
    assert products == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", VARIANTS, ids=NAMES)
def test_training_has_the_gradients_of_the_formula(method: LowRank, shape: tuple[int, int]) -> None:
    linear, random = bare_linear(*shape), torch.Generator().manual_seed(3)
    x = torch.randn(5, shape[0], generator=random, requires_grad=True)
    y, up = (torch.randn(5, shape[1], generator=random) for _ in range(2))
    kept = y.clone()
    vectors = {k: v.requires_grad_() for k, v in draw(method, linear, 3, 2).items()}
    layers = {"x": (linear, TrainedRows(**method.fold(linear, 3, vectors, 2.0)))}
    fast = method.deltas(layers, 3, bases_for(method, [linear], 3))["x"](x, x, y)
    assert torch.equal(y, kept), "an output that autograd may have saved was overwritten"
    plain = y + x @ method.dense(linear, 3, Basis(SEED), vectors, 2.0).float().t()
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    leaves = [x, *vectors.values()]
    ours = torch.autograd.grad((fast * up).sum(), leaves)
    theirs = torch.autograd.grad((plain * up).sum(), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_references_are_the_papers_formulas() -> None:
    linear = bare_linear(16, 3)
    a, b = torch.randn(4, 16), torch.randn(3, 4)
    lora = LowRank().dense(linear, 4, Basis(9), {"A": a, "B": b}, 2.0)
    torch.testing.assert_close(lora, 2 * b.double() @ a.double())
    frozen_a = Basis(9).a(4, 16, torch.float64) / 4  # uniform in +-1 / sqrt(in)
    train_b = LowRank("B").dense(linear, 4, Basis(9), {"B": b}, 2.0)
    torch.testing.assert_close(train_b, 2 * b.double() @ frozen_a)
    frozen_b = Basis(9).b(3, 4, torch.float64) / 2  # uniform in +-1 / sqrt(rank)
    train_a = LowRank("A").dense(linear, 4, Basis(9), {"A": a}, 2.0)
    torch.testing.assert_close(train_a, 2 * frozen_b @ a.double())


@pytest.mark.parametrize("columns", [36, 384, 2048, 14_336])
def test_frozen_matrices_have_the_published_spread_to_a_power_of_two(columns: int) -> None:
    linear = bare_linear(columns, 2)
    folded = LowRank("B").fold(linear, 8, {"B": torch.ones(2, 8)}, 1.0)["B"][0, 0].item()
    assert math.log2(folded).is_integer()
    assert 0.7 < folded * math.sqrt(columns) < 1.42
    narrow = LowRank("A").fold(bare_linear(2, 2), columns, {"A": torch.ones(1)}, 1.0)["A"].item()
    assert narrow == folded, "a frozen B has its rank for columns"


def test_lora_starts_as_published() -> None:
    linear = bare_linear(400, 6)
    initial = LowRank().initial(linear, 16, Basis(1, layer=2))
    assert not initial["B"].any()
    bound = 1 / math.sqrt(400)
    assert initial["A"].abs().max() <= bound
    assert initial["A"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    other = LowRank().initial(linear, 16, Basis(1, layer=3))
    assert not torch.equal(initial["A"], other["A"]), "each layer starts from streams of its own"


@pytest.mark.parametrize("method", VARIANTS, ids=NAMES)
def test_a_start_changes_nothing_and_counts_as_promised(method: LowRank) -> None:
    linear = bare_linear(10, 6)
    initial = method.initial(linear, 4, Basis(1))
    assert {name: tuple(value.shape) for name, value in initial.items()} == method.shapes(linear, 4)
    assert not method.dense(linear, 4, Basis(1), initial, 2.0).any()
    count = sum(value.numel() for value in initial.values())
    assert count == {"A+B": 4 * 16, "B": 4 * 6, "A": 4 * 10}[method.trained]
    assert method.unit(linear, 4) == dict.fromkeys(initial, 1.0)
    assert method.default_scale(4) == method.default_scale(64) == 2.0


def test_padded_ranks_are_powers_of_two_within_the_largest_rank() -> None:
    padded = [LowRank().padded_rank(rank, 24) for rank in (1, 4, 5, 8, 9, 17, 24)]
    assert padded == [4, 4, 8, 8, 16, 24, 24]
    assert LowRank().padded_rank(2, 3) == 3
    for rank in range(1, 25):
        assert LowRank("B").basis_size(bare_linear(8, 8), rank).a_rank >= LowRank("B").padded_rank(
            rank, 24
        )


def test_dropout_thins_out_what_is_trained_on_only() -> None:
    linear, x, y = bare_linear(8, 6), torch.ones(4, 8), torch.zeros(4, 6)
    for method in VARIANTS:
        layers = {"x": (linear, TrainedRows(**draw(method, linear, 2, 1)))}
        bases = bases_for(method, [linear], 2)
        plain = method.deltas(layers, 2, bases)["x"](x, x, y)
        thinned = method.deltas(layers, 2, bases, dropout=0.5)["x"]
        assert not torch.allclose(thinned(x, x, y), plain)
        with torch.inference_mode():
            assert torch.equal(thinned(x, x, y.clone()), plain)


def test_options_come_back_from_a_manifest() -> None:
    for method in VARIANTS:
        assert method_named(method.name, {**method.options, "dropout": "0.1"}) == method
    assert method_named("asymmetric-lora") == LowRank("B")
    assert method_named("asymmetric-lora", {"trained": "B"}).basis(9).spec == SPEC
    assert method_named("lora", {}).basis(9).spec == NO_BASIS
    with pytest.raises(InvalidAdapter, match="trained='C'"):
        method_named("asymmetric-lora", {"trained": "C"})
    with pytest.raises(InvalidAdapter, match="asymmetric-lora, lora"):
        method_named("dora")


@pytest.mark.parametrize(
    ("name", "trained"), [("lora", ""), ("asymmetric-lora", "B"), ("asymmetric-lora", "A")]
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_trains_on_a_model_and_serves_what_it_learnt(kind: str, name: str, trained: str) -> None:
    base = tiny_base("llama" if kind == "llama" else "gpt2")
    tokens = torch.arange(3, 15)
    options = {"trained": trained} if trained else {}
    adapter = TrainableAdapter(base, name, 3, 7, "all-linear", options)
    weights = {key: value.clone() for key, value in base.model.state_dict().items()}
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        with adapter.active():
            loss = base.model(tokens[None], labels=tokens[None]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, weights[key]) for key, value in base.model.state_dict().items())
    names = {key.rsplit(".", 1)[1] for key in adapter.tensors()}
    assert names == ({"A", "B"} if not trained else {trained}), "a frozen factor is no parameter"
    made = Made(adapter.manifest(created_at=0, provenance={}), adapter.tensors())
    assert made.manifest.scale == 2.0
    with torch.no_grad(), adapter.active():
        logits = base.model(tokens[None]).logits[0]
    expected = merged_logits(base, made, tokens)
    torch.testing.assert_close(logits, expected, rtol=2e-4, atol=2e-4)
    assert not torch.allclose(expected, merged_logits(base, None, tokens), atol=1e-2)
