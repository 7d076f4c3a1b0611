"""The same on CUDA, where copies to the device overlap with the steps that read it."""

import pytest
import torch

from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.methods.lowrank.by_adapter import OWN_PRODUCT_TOKENS
from server.bases.model import BaseModel
from tests.adapters.conftest import Serve
from tests.adapters.made import make_adapter, merged_logits, one_of_each
from tests.models import KINDS, Kind, tiny_model

pytestmark = pytest.mark.gpu

TOKENS = torch.arange(3, 40)


def base_on_gpu(kind: Kind, dtype: torch.dtype = torch.float32) -> BaseModel:
    model = tiny_model(kind, dtype=dtype)
    torch.nn.Module.cuda(model)
    return BaseModel.of(model, f"tiny-{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_equals_its_dense_merges(kind: Kind, serve: Serve) -> None:
    served = serve(base_on_gpu(kind))
    mades = [make_adapter(served.base, rank=r, draw=r, seed=r % 2) for r in (1, 8, 30)]
    slots = [served.acquire(served.publish(made, f"a{i}")) for i, made in enumerate(mades)]
    tokens = TOKENS.cuda()
    logits = served.logits(tokens.expand(4, -1), [*slots, 0])
    for made, row in zip([*mades, None], logits, strict=True):
        expected = merged_logits(served.base, made, tokens)
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("own_from", [1, 10, 10**6], ids=["own", "some own", "gathered"])
def test_all_methods_serve_one_batch(
    own_from: int, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OWN_PRODUCT_TOKENS, "cuda", own_from)
    served = serve(base_on_gpu("llama"), slots=12)
    mades = one_of_each(served.base)
    slots = [served.acquire(served.publish(made, f"a{i}")) for i, made in enumerate(mades)]
    tokens = TOKENS.cuda()
    for length in (len(TOKENS), 5):
        logits = served.logits(tokens[:length].expand(len(slots), -1), slots)
        for made, row in zip(mades, logits, strict=True):
            expected = merged_logits(served.base, made, tokens[:length])
            torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-3)


def test_a_busy_randlora_adapter_is_served_by_its_update(serve: Serve) -> None:
    served = serve(base_on_gpu("llama"), dense_mb=1)
    mades = [
        make_adapter(served.base, method="randlora", rank=7, draw=1),
        make_adapter(served.base, method="randlora", rank=7, draw=2),
        make_adapter(served.base, draw=3),
    ]
    slots = [served.acquire(served.publish(made, f"a{i}")) for i, made in enumerate(mades)]
    tokens, seen = TOKENS.cuda(), False
    while not seen:  # before, while and after it is made
        seen = slots[0] in served.adapters.steps.batch([slots[0]] * 16).updates
        for length in (len(TOKENS), 1):
            logits = served.logits(tokens[:length].expand(4, -1), [*slots, 0])
            for made, row in zip([*mades, None], logits, strict=True):
                expected = merged_logits(served.base, made, tokens[:length])
                torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-3)
        alone = served.logits(tokens[:1, None], slots[:1])[0]
        torch.testing.assert_close(
            alone, merged_logits(served.base, mades[0], tokens[:1]), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_the_base_does(dtype: torch.dtype, serve: Serve) -> None:
    exact, served = base_on_gpu("llama"), serve(base_on_gpu("llama", dtype))
    made = make_adapter(served.base, draw=1)
    slot = served.acquire(served.publish(made))
    tokens = TOKENS.cuda()
    logits = served.logits(tokens.expand(2, -1), [slot, 0]).float()
    adapted, plain = (
        (row - merged_logits(exact, who, tokens)).abs().max()
        for row, who in zip(logits, (made, None), strict=True)
    )
    assert adapted < 4 * plain


def test_slots_change_hands_between_steps_that_were_only_queued(serve: Serve) -> None:
    served = serve(base_on_gpu("llama"), slots=2)
    mades = [make_adapter(served.base, rank=4 + i, draw=i) for i in range(6)]
    refs = [served.publish(made, f"a{i}") for i, made in enumerate(mades)]
    tokens = TOKENS.cuda()
    answers = []
    for turn in range(60):
        slot = served.acquire(refs[turn % 6])
        answers.append(served.logits(tokens[None], [slot])[0])
        served.adapters.release(refs[turn % 6])
    expected = [merged_logits(served.base, made, tokens) for made in mades]
    for turn, logits in enumerate(answers):
        torch.testing.assert_close(logits, expected[turn % 6], rtol=1e-3, atol=1e-3)


def test_rows_come_and_go_under_steps_that_were_only_queued(serve: Serve) -> None:
    """Steps of two adapters each, the next rows on their way before the last steps have run."""
    served = serve(base_on_gpu("llama"), slots=3)
    mades = [
        make_adapter(served.base, rank=rank, draw=draw, targets=targets, method=method)
        for draw, (method, rank, targets) in enumerate(
            [
                ("vera", 4, "all-linear"),
                ("lora", 8, "attention"),
                ("vera", 30, "all-linear"),
                ("lora", 3, ["down_proj"]),
                ("randlora", 7, "all-linear"),
                ("vera", 9, ["q_proj"]),
                ("asymmetric-lora", 16, "all-linear"),
            ]
        )
    ]
    refs = [served.publish(made, f"a{i}") for i, made in enumerate(mades)]
    for ref in refs:  # all in host memory, so that nothing below waits for a disk
        served.acquire(ref)
        served.adapters.release(ref)
    tokens = TOKENS.cuda()
    expected = [merged_logits(served.base, made, tokens) for made in mades]
    answers = []
    torch.cuda.synchronize()
    for turn in range(200):
        pair = [(turn * 3) % 7, (turn * 5 + 1) % 7]
        slots = [served.acquire(refs[at]) for at in pair]
        if turn % 4 == 0:
            torch.cuda._sleep(5_000_000)  # the device falls behind, by steps
        answers.append((pair, served.logits(tokens.expand(2, -1), slots)))
        for at in pair:
            served.adapters.release(refs[at])
    assert served.adapters.evictions > 100
    for pair, rows in answers:
        for at, row in zip(pair, rows, strict=True):
            torch.testing.assert_close(row, expected[at], rtol=1e-3, atol=1e-3)


def test_it_trains() -> None:
    base = base_on_gpu("llama", torch.bfloat16)
    adapter = TrainableAdapter(base, "vera", 8, 7, "all-linear", {"dropout": 0.1})
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02)
    tokens = TOKENS.cuda()[None]
    losses = []
    for _ in range(10):
        with adapter.active():
            loss = base.model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
