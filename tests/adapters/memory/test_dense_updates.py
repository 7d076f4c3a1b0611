"""Dense updates of busy RandLoRA adapters: what they answer, who has one, and when it is gone."""

import logging
from collections.abc import Sequence

import pytest
import torch

from adapters_store.manifest import AdapterRef
from server.adapters.memory import dense_updates
from server.adapters.memory.dense_updates import (
    BUSY,
    DENSE_FEW,
    DENSE_FROM,
    DenseDelta,
    served_densely,
)
from server.adapters.methods.randlora.randlora import RandLora
from server.bases.model import BaseModel
from tests.adapters.conftest import Serve
from tests.adapters.made import Made, make_adapter, merged_logits, one_of_each
from tests.adapters.methods.test_randlora import SHAPES, VARIANTS, change, drawn, linear, pair_of
from tests.adapters.served import Served
from tests.models import Kind, tiny_base

TOKENS = torch.arange(3, 14)
CUDA = torch.device("cuda")
MIB = 2**20


@pytest.fixture(autouse=True)
def _always_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update serves every token of its adapter, where a CPU would still gather."""
    monkeypatch.setitem(DENSE_FROM, "cpu", 1)


def randlora(base: BaseModel, draw: int, *, rank: int = 7, sparsity: str = "dense") -> Made:
    options = {"sparsity": sparsity}
    return make_adapter(base, method="randlora", rank=rank, draw=draw, options=options)


def wide_base() -> BaseModel:
    """1.125 MiB of target weights."""
    return tiny_base("llama", hidden_size=128, intermediate_size=256)


def published(served: Served, mades: Sequence[Made]) -> list[AdapterRef]:
    return [served.publish(made, f"a{i}") for i, made in enumerate(mades)]


def step(served: Served, *slots: int, tokens: int = 16) -> set[int]:
    """Prepare a step without running it: the slots that have an update."""
    with torch.inference_mode():
        batch = served.adapters.steps.batch([slot for slot in slots for _ in range(tokens)])
    return set(batch.updates)


def warm(served: Served, *slots: int) -> None:
    """Prepare steps until all of these slots have an update."""
    for _ in range(200):
        if set(slots) <= step(served, *slots):
            return
    raise AssertionError(f"slots {slots} got no update in 200 steps")


def assert_served(served: Served, picks: Sequence[Made | None], slots: Sequence[int]) -> None:
    logits = served.logits(TOKENS.expand(len(slots), -1), slots)
    for made, row in zip(picks, logits, strict=True):
        expected = merged_logits(served.base, made, TOKENS.to(served.base.device))
        torch.testing.assert_close(row, expected, rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
@pytest.mark.parametrize("method", VARIANTS, ids=str)
@pytest.mark.parametrize("rank", [1, 5, 50])
def test_an_update_is_the_reference(
    method: RandLora, in_features: int, out_features: int, rank: int
) -> None:
    target = linear(in_features, out_features)
    vectors = {name: v[0] for name, v in drawn(method, target, rank).items()}
    fast = method.merged(target, rank, pair_of(method, target, rank), vectors)
    expected = change(method, target, rank, vectors)
    torch.testing.assert_close(fast.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("sparsity", ["dense", "3"])
def test_answers_are_the_merges_before_while_and_after_it_is_made(
    kind: Kind, sparsity: str, serve: Serve
) -> None:
    served = serve(tiny_base(kind), dense_mb=1)
    made = randlora(served.base, 1, sparsity=sparsity)
    slot = served.acquire(served.publish(made))
    seen = []
    while True not in seen:
        assert_served(served, [made, None], [slot, 0])
        seen.append(slot in step(served, slot))
    steps = -(-BUSY // 27)  # until it is busy, at 11 tokens of `assert_served` and 16 of `step`
    assert steps < len(seen) <= steps + len(served.base.targets)
    deltas = served.adapters.steps.batch([slot]).deltas
    assert deltas.keys() == served.base.targets.keys()
    assert all(isinstance(delta, DenseDelta) for of_path in deltas.values() for delta in of_path)
    assert_served(served, [made, None], [slot, 0])


def test_hot_and_cold_adapters_of_all_methods_share_a_batch(serve: Serve) -> None:
    served = serve(slots=16, dense_mb=1)
    mades = [*one_of_each(served.base), randlora(served.base, 21), randlora(served.base, 22)]
    slots = [served.acquire(ref) for ref in published(served, mades)]
    hot = [4, 5, 11]  # two of one group, with a cold third, and one of another basis
    warm(served, *(slots[i] for i in hot))
    rows = [None, *mades, None, mades[4], mades[9], mades[11], mades[4]]
    picks = [0, *slots, 0, slots[4], slots[9], slots[11], slots[4]]
    batch = served.adapters.steps.batch(picks)
    assert set(batch.updates) == {slots[i] for i in hot}
    assert_served(served, rows, picks)
    assert_served(served, rows[::-1], picks[::-1])


def test_single_tokens_in_any_order(serve: Serve) -> None:
    served = serve(dense_mb=1)
    mades = [randlora(served.base, i) for i in range(4)]
    slots = [served.acquire(ref) for ref in published(served, mades)]
    warm(served, *slots[:2])
    order = [0, 2, 1, 0, 3, 1, 1, 0, 2, 0]
    tokens = torch.arange(5, 5 + len(order))[:, None]
    logits = served.logits(tokens, [slots[pick] for pick in order])
    for pick, token, row in zip(order, tokens, logits, strict=True):
        expected = merged_logits(served.base, mades[pick], token)
        torch.testing.assert_close(row, expected, rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_the_base_does(dtype: torch.dtype, serve: Serve) -> None:
    exact, served = tiny_base("llama"), serve(tiny_base("llama", dtype=dtype), dense_mb=1)
    made = randlora(served.base, 1)
    slot = served.acquire(served.publish(made))
    warm(served, slot)
    adapted, plain = served.logits(TOKENS.expand(2, -1), [slot, 0]).float()
    lost = (plain - merged_logits(exact, None, TOKENS)).abs().max()
    assert (adapted - merged_logits(exact, made, TOKENS)).abs().max() < 4 * lost


def test_the_next_adapter_of_a_slot_reads_nothing_of_the_last(serve: Serve) -> None:
    served = serve(slots=1, dense_mb=1)
    mades = [randlora(served.base, i) for i in range(2)]
    refs = [served.publish(made, "pet") for made in mades]  # two versions of one name
    for ref, made in zip(refs * 2, mades * 2, strict=True):
        slot = served.acquire(ref)
        assert_served(served, [made], [slot])
        assert not step(served, slot)
        assert served.adapters.dense_bytes == 0
        warm(served, slot)
        assert_served(served, [made], [slot])
        served.adapters.release(ref)


def test_an_adapter_that_leaves_while_its_update_is_made_leaves_nothing(serve: Serve) -> None:
    served = serve(slots=1, dense_mb=1)
    mades = [randlora(served.base, 1), randlora(served.base, 2, sparsity="3")]
    refs = published(served, mades)  # with its last adapter, a basis leaves the device
    slot = served.acquire(refs[0])
    while not served.adapters.dense_bytes:
        step(served, slot)
    step(served, slot)  # a first linear
    served.adapters.release(refs[0])
    assert served.acquire(refs[1]) == slot
    assert_served(served, [mades[1]], [slot])
    warm(served, slot)
    assert_served(served, [mades[1]], [slot])


def test_a_forgotten_adapter_serves_its_last_answers_and_frees_its_update(serve: Serve) -> None:
    served = serve(dense_mb=1)
    made = randlora(served.base, 1)
    ref = served.publish(made)
    slot = served.acquire(ref)
    warm(served, slot)
    served.adapters.forget(ref)
    assert_served(served, [made], [slot])
    assert slot in step(served, slot)
    served.adapters.release(ref)
    assert not step(served, 0)
    assert served.adapters.dense_bytes == 0


def test_the_coldest_update_leaves_for_a_hotter_adapter_and_none_in_use_does(serve: Serve) -> None:
    served = serve(wide_base(), dense_mb=3)  # two of them
    mades = [randlora(served.base, i, rank=32) for i in range(3)]
    cold, warmer, hot = (served.acquire(ref) for ref in published(served, mades))
    warm(served, cold, warmer)
    assert step(served, 0) == {cold, warmer}
    for _ in range(100):  # both that have one are in use
        assert step(served, cold, warmer, *[hot] * 4) == {cold, warmer}
    step(served, warmer)
    while hot not in step(served, hot):
        assert served.adapters.dense_bytes <= 3 * MIB
    assert step(served, 0) == {warmer, hot}
    assert served.adapters.dense_bytes == 2 * 1.125 * MIB
    assert_served(served, mades, [cold, warmer, hot])


def test_adapters_that_are_as_busy_do_not_take_turns(serve: Serve) -> None:
    served = serve(wide_base(), dense_mb=2)  # one of them
    slots = [
        served.acquire(ref)
        for ref in published(served, [randlora(served.base, i, rank=32) for i in range(2)])
    ]
    warm(served, slots[0])
    for _ in range(100):
        assert step(served, slots[0]) == {slots[0]}
        assert step(served, slots[1]) == {slots[0]}


def test_memory_that_holds_no_update_makes_none(serve: Serve) -> None:
    served = serve(wide_base(), dense_mb=1)
    slot = served.acquire(served.publish(randlora(served.base, 1, rank=32)))
    for _ in range(50):
        assert not step(served, slot)
        assert served.adapters.dense_bytes == 0


def test_methods_of_thin_products_and_idle_adapters_have_none(serve: Serve) -> None:
    served = serve(slots=12, dense_mb=8)
    mades = one_of_each(served.base)
    slots = [served.acquire(ref) for ref in published(served, mades)]
    others = [s for s, made in zip(slots, mades, strict=True) if made.manifest.method != "randlora"]
    for _ in range(20):
        step(served, *others)
        step(served, slots[4], tokens=1)
    assert served.adapters.dense_bytes == 0
    warm(served, slots[4])


def test_nothing_else_sees_it(serve: Serve) -> None:
    served = serve(slots=3, dense_mb=1)
    refs = published(served, [randlora(served.base, i) for i in range(2)])
    slots = [served.acquire(ref) for ref in refs]
    before = served.adapters.snapshot()
    warm(served, *slots)
    assert served.adapters.snapshot() == before
    assert (served.adapters.loads, served.adapters.evictions) == (2, 0)


def test_a_batch_is_given_again_until_an_update_comes_or_goes(serve: Serve) -> None:
    served = serve(wide_base(), dense_mb=2)
    mades = [randlora(served.base, i, rank=32) for i in range(2)]
    slots = [served.acquire(ref) for ref in published(served, mades)]
    many, last, made = [slots[0]] * 16, served.adapters.steps.batch([slots[0]] * 16), 0
    for _ in range(40):
        batch = served.adapters.steps.batch(many)
        made += batch is not last
        last = batch
    assert made == 1
    while set(last.updates):
        served.adapters.steps.batch([slots[1]] * 64)
        last = served.adapters.steps.batch([slots[0]])
    assert_served(served, mades, slots)


def test_serving_goes_on_where_the_device_has_no_memory(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(dense_mb=1)
    mades = [randlora(served.base, i) for i in range(2)]
    slots = [served.acquire(ref) for ref in published(served, mades)]
    warm(served, slots[0])
    held, tries = served.adapters.dense_bytes, []

    def out_of_memory(*_: object) -> None:
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(RandLora, "merged", out_of_memory)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            assert step(served, *slots) == {slots[0]}
    assert len(tries) == 1
    assert "lower dense_memory_mb" in caplog.text
    assert served.adapters.dense_bytes == held
    assert_served(served, mades, slots)


def test_who_is_served_densely_on_cuda(serve: Serve) -> None:
    served = serve(slots=8)
    mades = [randlora(served.base, i) for i in range(6)] + [make_adapter(served.base)]
    *slots, vera = (served.acquire(ref) for ref in published(served, mades))
    residents, few = served.adapters._table.by_slot, DENSE_FEW["cuda"]
    updates = {slot: {"x": torch.empty(0)} for slot in slots[:5]}
    cold, hot = slots[5], slots[0]

    def chosen(*step: int) -> set[int]:
        return served_densely(step, residents, updates, CUDA)

    assert chosen(hot) == {hot}
    assert chosen(0, vera, hot, vera) == {hot}, "nobody else gathers"
    assert chosen(*slots[:few]) == set(slots[:few])
    assert chosen(*slots[: few + 1]) == set(), "gathering is one product for all of them"
    assert chosen(hot, cold) == set(), "gathered anyway"
    many = [hot] * DENSE_FROM["cuda"]
    assert chosen(cold, *many) == {hot}
    assert chosen(slots[1], *many) == {hot, slots[1]}
    assert chosen(cold, slots[1], *many) == {hot}
    assert chosen(cold, cold, vera, 0) == set()


def test_recent_tokens_count_more(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_updates, "HALF_LIFE", 1)
    served = serve(dense_mb=1)
    slot = served.acquire(served.publish(randlora(served.base, 1)))
    for _ in range(50):  # never twice as many as one step's
        step(served, slot, tokens=BUSY // 2 - 1)
    assert served.adapters.dense_bytes == 0
    step(served, slot, tokens=BUSY)
    assert served.adapters.dense_bytes > 0
