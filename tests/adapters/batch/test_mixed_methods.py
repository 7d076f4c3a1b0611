"""Every method at once: one batch in which each row must be as if its adapter were merged."""

import pytest
import torch

from server.adapters.learning.trainable import TrainableAdapter
from tests.adapters.conftest import Serve
from tests.adapters.made import Made, make_adapter, merged_logits, one_of_each
from tests.models import Kind, tiny_base

TOKENS = torch.arange(3, 14)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_all_methods_serve_one_batch(kind: Kind, serve: Serve) -> None:
    served = serve(tiny_base(kind), slots=12)
    mades = one_of_each(served.base)
    slots = [served.acquire(served.publish(made, f"a{i}")) for i, made in enumerate(mades)]
    rows = [None, *mades, None, mades[9], mades[0], mades[7]]
    picks = [0, *slots, 0, slots[9], slots[0], slots[7]]
    logits = served.logits(TOKENS.expand(len(rows), -1), picks)
    plain = merged_logits(served.base, None, TOKENS)
    for made, row in zip(rows, logits, strict=True):
        expected = merged_logits(served.base, made, TOKENS)
        torch.testing.assert_close(row, expected, rtol=2e-4, atol=2e-4)
        moved = (expected - plain).abs().max()
        assert moved > 0.02 if made else moved == 0


def test_a_decoding_step_takes_single_tokens_in_any_order(serve: Serve) -> None:
    served = serve(tiny_base("llama"), slots=12)
    mades = one_of_each(served.base)
    slots = [served.acquire(served.publish(made, f"a{i}")) for i, made in enumerate(mades)]
    order = [8, 10, 6, 8, 0, 4, 7, 8, 5, 6, 1, 9, 8, 2, 3, 8, 7, 8, 8, 8, 8]  # lora 8 is popular
    tokens = torch.arange(5, 5 + len(order))[:, None]
    logits = served.logits(tokens, [slots[pick] for pick in order])
    for pick, token, row in zip(order, tokens, logits, strict=True):
        expected = merged_logits(served.base, mades[pick], token)
        torch.testing.assert_close(row, expected, rtol=2e-4, atol=2e-4)


def test_slots_pass_from_one_method_to_another(serve: Serve) -> None:
    served = serve(slots=2)
    mades = one_of_each(served.base)
    refs = [served.publish(made, f"a{i}") for i, made in enumerate(mades)]
    for ref, made in zip(refs * 2, mades * 2, strict=True):
        logits = served.logits(TOKENS[None], [served.acquire(ref)])[0]
        served.adapters.release(ref)
        expected = merged_logits(served.base, made, TOKENS)
        torch.testing.assert_close(logits, expected, rtol=2e-4, atol=2e-4)


def test_variants_of_one_method_and_seed_keep_apart(serve: Serve) -> None:
    served = serve()
    halves = [
        make_adapter(served.base, method="asymmetric-lora", rank=4, draw=i, options={"trained": t})
        for i, t in enumerate("BA")
    ]
    slots = [served.acquire(served.publish(made, f"a{i}")) for i, made in enumerate(halves)]
    for made, row in zip(halves, served.logits(TOKENS.expand(2, -1), slots), strict=True):
        expected = merged_logits(served.base, made, TOKENS)
        torch.testing.assert_close(row, expected, rtol=2e-4, atol=2e-4)


VARIANTS = [
    ("vera", {}),
    ("vera", {"trained": "d"}),
    ("vera", {"trained": "b"}),
    ("vera", {"basis": "per-layer"}),
    ("randlora", {}),
    ("randlora", {"sparsity": "6"}),
    ("asymmetric-lora", {}),
    ("asymmetric-lora", {"trained": "A"}),
    ("lora", {}),
]


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=str)
def test_what_was_learnt_is_what_is_served(
    method: str, options: dict[str, str], serve: Serve
) -> None:
    served = serve(tiny_base("gpt2"))  # its layers are square, wide and tall
    adapter = TrainableAdapter(served.base, method, 6, 3, "all-linear", options)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    for _ in range(3):
        with adapter.active():
            loss = served.base.model(TOKENS[None], labels=TOKENS[None]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = Made(adapter.manifest(created_at=0, provenance={}), adapter.tensors())
    expected = merged_logits(served.base, made, TOKENS)
    with torch.no_grad(), adapter.active():
        trained = served.base.model(TOKENS[None]).logits[0]
    answer = served.logits(TOKENS[None], [served.acquire(served.publish(made))])[0]
    torch.testing.assert_close(trained, expected, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(answer, expected, rtol=2e-4, atol=2e-4)
    assert (expected - merged_logits(served.base, None, TOKENS)).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_the_base_does(dtype: torch.dtype, serve: Serve) -> None:
    exact, served = tiny_base("llama"), serve(tiny_base("llama", dtype=dtype), slots=12)
    mades = one_of_each(served.base)
    slots = [served.acquire(served.publish(made, f"a{i}")) for i, made in enumerate(mades)]
    plain, *adapted = served.logits(TOKENS.expand(len(slots) + 1, -1), [0, *slots]).float()
    lost = (plain - merged_logits(exact, None, TOKENS)).abs().max()
    for made, row in zip(mades, adapted, strict=True):
        assert (row - merged_logits(exact, made, TOKENS)).abs().max() < 4 * lost
