"""Mixed batches against the plain dense merge, on every kind of model."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from adapters_store.manifest import AdapterRef
from server.adapters.batch.linears import AdaptedLinear
from server.bases.model import BaseModel
from tests.adapters.conftest import Serve
from tests.adapters.made import Made, make_adapter, merged_logits
from tests.adapters.served import Served
from tests.models import KINDS, VOCAB, Kind, tiny_base

LENGTH = 13


def varied(base: BaseModel) -> list[Made]:
    """Adapters of different ranks, targets, seeds and scales."""
    names = sorted({path.rsplit(".", 1)[-1] for path in base.targets})
    last = max(base.targets)
    return [
        make_adapter(base, rank=8, draw=1),
        make_adapter(base, rank=1, draw=2),
        make_adapter(base, rank=29, draw=3, targets=names[:1]),
        make_adapter(base, rank=5, draw=4, seed=2**64 - 1),
        make_adapter(base, rank=16, draw=5, seed=99, targets="attention", scale=-0.5),
        make_adapter(base, rank=3, draw=6, targets=[last]),
    ]


def some_tokens(rows: int, length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(rows))


def check(served: Served, mades: Sequence[Made], picks: Sequence[int], *, rtol: float) -> None:
    """Row i uses adapter `picks[i]` of `mades`, or the base for -1; each must be as if merged."""
    refs = [served.publish(made, f"a{i}") for i, made in enumerate(mades)]
    slots = [0 if pick < 0 else served.acquire(refs[pick]) for pick in picks]
    tokens = some_tokens(len(picks))
    for row, pick, logits in zip(tokens, picks, served.logits(tokens, slots), strict=True):
        expected = merged_logits(served.base, None if pick < 0 else mades[pick], row)
        torch.testing.assert_close(logits, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kind", KINDS)
def test_each_alone_equals_its_dense_merge(kind: Kind, serve: Serve) -> None:
    served = serve(tiny_base(kind))
    for made in varied(served.base):
        check(served, [made], [0], rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_all_together_equal_their_dense_merges(kind: Kind, serve: Serve) -> None:
    served = serve(tiny_base(kind))
    check(served, varied(served.base), [0, -1, 1, 2, 3, -1, 4, 5, 0], rtol=2e-4)


@pytest.mark.parametrize(
    "picks",
    [[2] * 7, [0, 1, 2, 3, 4, 5], [1] * 9 + [4, -1], [-1] * 6 + [5]],
    ids=["identical", "distinct", "skewed", "nearly all base"],
)
def test_any_popularity(picks: list[int], serve: Serve) -> None:
    served = serve()
    check(served, varied(served.base), picks, rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_the_answer(kind: Kind) -> None:
    base = tiny_base(kind)
    tokens = some_tokens(1)[0]
    plain = merged_logits(base, None, tokens)
    for made in varied(base):
        moved = (merged_logits(base, made, tokens) - plain).abs().max()
        assert moved > 0.02, f"{made.manifest.targets} moves the logits by {moved} only"


@pytest.mark.parametrize("kind", KINDS)
def test_base_rows_get_the_bits_of_a_batch_without_adapters(kind: Kind, serve: Serve) -> None:
    served = serve(tiny_base(kind))
    refs = [served.publish(made, f"a{i}") for i, made in enumerate(varied(served.base))]
    slots = [0, *(served.acquire(ref) for ref in refs), 0]
    tokens = some_tokens(len(slots))
    mixed, plain = served.logits(tokens, slots), served.logits(tokens, [0] * len(slots))
    assert torch.equal(mixed[[0, -1]], plain[[0, -1]])
    with torch.inference_mode():
        assert torch.equal(served.base.model(tokens, use_cache=False).logits, plain)


def test_neighbours_do_not_change_a_row(serve: Serve) -> None:
    served = serve()
    refs = [served.publish(made, f"a{i}") for i, made in enumerate(varied(served.base))]
    slots = [served.acquire(ref) for ref in refs]
    tokens = some_tokens(6)
    first = served.logits(tokens, slots)[0]
    others = served.logits(tokens, [slots[0], 0, slots[3], slots[3], slots[0], 0])[0]
    torch.testing.assert_close(first, others, rtol=1e-5, atol=1e-5)
    assert torch.equal(first.argmax(-1), others.argmax(-1))


def test_a_single_token_and_odd_shapes(serve: Serve) -> None:
    base = tiny_base("llama", hidden_size=36, intermediate_size=67, num_attention_heads=3,
                     num_key_value_heads=1)  # fmt: skip
    served = serve(base)
    mades = [make_adapter(base, rank=31, draw=1), make_adapter(base, rank=7, draw=2, seed=3)]
    check(served, mades, [0, -1, 1], rtol=2e-4)
    slots = [served.acquire(AdapterRef("ann", f"a{i}", 1)) for i in range(2)]
    tokens = torch.tensor([[7]])
    for made, slot in zip(mades, slots, strict=True):
        torch.testing.assert_close(
            served.logits(tokens, [slot])[0],
            merged_logits(base, made, tokens[0]),
            rtol=2e-4,
            atol=2e-4,
        )


def test_rank_1024(serve: Serve) -> None:
    base = tiny_base("llama")
    served = serve(base, max_rank=1024)
    mades = [make_adapter(base, rank=1024, draw=1), make_adapter(base, rank=2, draw=2)]
    check(served, mades, [0, 1, -1], rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_within_its_tolerance(dtype: torch.dtype, serve: Serve) -> None:
    exact = tiny_base("llama")
    served = serve(tiny_base("llama", dtype=dtype))
    made = make_adapter(served.base, rank=8, draw=1)
    slot = served.acquire(served.publish(made))
    tokens = some_tokens(2)
    logits = served.logits(tokens, [slot, 0]).float()
    expected = torch.stack([merged_logits(exact, made, tokens[0]),
                            merged_logits(exact, None, tokens[1])])  # fmt: skip
    spread = expected.std()
    assert (logits - expected).abs().mean() < 0.03 * spread
    adapted, plain = (logits - expected).abs().amax((1, 2))
    assert adapted < 4 * plain, "the adapter loses more than the base does"


def test_layers_without_a_target_run_plainly(serve: Serve) -> None:
    served = serve()
    path = "model.layers.0.self_attn.q_proj"
    slot = served.acquire(served.publish(make_adapter(served.base, targets=[path])))
    batch = served.adapters.steps.batch([slot, 0])
    assert list(batch.deltas) == [path]
    assert served.adapters.steps.batch([0, 0]).deltas == {}


def test_siblings_share_one_product(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    slot = served.acquire(served.publish(make_adapter(served.base)))
    products = 0
    plain_mm = torch.mm

    def counted(left: Tensor, right: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return plain_mm(left, right)

    monkeypatch.setattr(torch, "mm", counted)
    served.logits(some_tokens(1), [slot])
    layers = served.base.num_layers
    assert products == layers * (4 + 7), "q k v; o; gate up; down read four inputs; seven write"


def test_a_slot_without_an_adapter_is_refused(serve: Serve) -> None:
    with pytest.raises(ValueError, match="slot 3 holds no adapter"):
        serve().adapters.steps.batch([0, 3])


def test_the_model_keeps_its_modules_and_state(serve: Serve) -> None:
    base = tiny_base("llama")
    names, state = [n for n, _ in base.model.named_modules()], list(base.model.state_dict())
    serve(base)
    assert [n for n, _ in base.model.named_modules()] == names
    assert list(base.model.state_dict()) == state
    assert all(isinstance(t.module.forward, AdaptedLinear) for t in base.targets.values())


def test_a_batch_of_the_same_slots_is_made_once(serve: Serve) -> None:
    served = serve()
    slots = [served.acquire(served.publish(make_adapter(served.base), n)) for n in "ab"]
    batch = served.adapters.steps.batch(slots)
    assert served.adapters.steps.batch(list(slots)) is batch
    assert served.adapters.steps.batch(slots[::-1]) is not batch
