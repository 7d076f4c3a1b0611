"""Loading, evicting, pinning and forgetting, from a real store."""

import dataclasses
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound
from adapters_store.weights import Content
from server.adapters.adapter_status import AdapterState, AdapterStatus
from server.bases.short_names import SHORT_NAMES
from server.errors import AdapterNotFinite, BasisMismatch, Conflict, InvalidAdapter, Unavailable
from tests.adapters.conftest import Serve
from tests.adapters.made import Made, make_adapter, merged_logits
from tests.adapters.served import Served
from tests.models import VOCAB, tiny_base

TOKENS = torch.arange(3, 14)


def fill(served: Served, count: int) -> tuple[list[AdapterRef], list[Made]]:
    """Publish `count` adapters of different ranks and targets."""
    targets = ["all-linear", "attention", ["down_proj", "q_proj"]]
    mades = [
        make_adapter(served.base, rank=1 + 5 * i % 16, draw=i, targets=targets[i % 3])
        for i in range(count)
    ]
    return [served.publish(made, f"a{i}") for i, made in enumerate(mades)], mades


def assert_served(served: Served, made: Made, slot: int) -> None:
    torch.testing.assert_close(
        served.logits(TOKENS[None], [slot])[0],
        merged_logits(served.base, made, TOKENS),
        rtol=2e-4,
        atol=2e-4,
    )


def resident(served: Served, ref: AdapterRef) -> AdapterStatus | None:
    return next((r for r in served.adapters.snapshot() if r.ref == ref), None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited for 10 s"
        time.sleep(0.001)


def test_a_slot_reused_holds_nothing_of_its_last_adapter(serve: Serve) -> None:
    served = serve(slots=2)
    refs, mades = fill(served, 9)
    for ref, made in zip(refs * 2, mades * 2, strict=True):
        slot = served.acquire(ref)
        assert_served(served, made, slot)
        served.adapters.release(ref)
    assert served.adapters.evictions == 16
    assert served.adapters.loads == 18


def test_acquire_does_not_wait_and_tells_when_to_come_back(serve: Serve) -> None:
    served = serve()
    told = threading.Event()
    served.adapters.on_loaded = told.set
    ref = served.publish(make_adapter(served.base))
    assert not served.adapters.is_loaded(ref)
    assert served.adapters.acquire(ref) is None
    assert told.wait(10)
    assert served.adapters.acquire(ref) == 1
    assert served.adapters.is_loaded(ref)


def test_a_resident_adapter_is_a_hit(serve: Serve) -> None:
    served = serve()
    ref = served.publish(make_adapter(served.base))
    served.acquire(ref)
    served.adapters.prepare(ref)
    assert served.adapters.acquire(ref) == 1
    assert (served.adapters.hits, served.adapters.loads) == (1, 1)
    held = resident(served, ref)
    assert held is not None
    assert (held.state, held.slot, held.in_use) == (AdapterState.RESIDENT, 1, 2)
    assert held.sha256 == served.store.open(ref).sha256


def test_none_while_every_slot_is_in_use(serve: Serve) -> None:
    served = serve(slots=2)
    refs, mades = fill(served, 3)
    slots = [served.acquire(ref) for ref in refs[:2]]
    served.adapters.prepare(refs[2])
    wait_until(lambda: resident(served, refs[2]) is not None)
    wait_until(lambda: not served.adapters._loader.loading())
    assert served.adapters.acquire(refs[2]) is None
    assert served.adapters.is_loaded(refs[2])
    for made, slot in zip(mades, slots, strict=False):
        assert_served(served, made, slot)
    served.adapters.release(refs[0])
    assert served.adapters.acquire(refs[2]) == slots[0]
    assert_served(served, mades[2], slots[0])
    assert_served(served, mades[1], slots[1])


def test_an_evicted_adapter_comes_back_from_host_memory(serve: Serve) -> None:
    served = serve(slots=1)
    refs, mades = fill(served, 2)
    for ref in refs:
        served.acquire(ref)
        served.adapters.release(ref)
    evicted = resident(served, refs[0])
    assert evicted is not None
    assert (evicted.state, evicted.slot) == (AdapterState.HOST, None)
    served.store.delete("ann", refs[0].name)
    assert served.adapters.acquire(refs[0]) == 1
    assert_served(served, mades[0], 1)


def test_it_works_with_next_to_no_host_memory(serve: Serve) -> None:
    served = serve(slots=2, host_cache_mb=0)
    refs, mades = fill(served, 24)
    for ref in refs:
        served.adapters.prepare(ref)
    for ref, made in zip(refs, mades, strict=True):
        slot = served.acquire(ref)
        assert_served(served, made, slot)
        served.adapters.release(ref)
    assert len(served.adapters.snapshot()) <= 2 + 8


def test_a_larger_rank_of_the_same_seed_grows_the_basis(serve: Serve) -> None:
    served = serve()
    small, large = (make_adapter(served.base, rank=rank, draw=rank) for rank in (2, 32))
    slots = [
        served.acquire(served.publish(made, name)) for made, name in ((small, "s"), (large, "l"))
    ]
    assert_served(served, small, slots[0])
    assert_served(served, large, slots[1])
    (loaded,) = served.adapters.steps.bases.loaded.values()
    assert {len(pair.a) for pair in loaded.pairs.values()} == {32}


def test_matrices_of_a_seed_go_with_its_last_adapter(serve: Serve) -> None:
    served = serve(slots=2)
    mades = [make_adapter(served.base, draw=seed, seed=seed) for seed in range(6)]
    refs = [served.publish(made, f"a{i}") for i, made in enumerate(mades)]
    for ref, made in zip(refs, mades, strict=True):
        assert_served(served, made, served.acquire(ref))
        served.adapters.release(ref)
        assert len(served.adapters.steps.bases.loaded) <= 2


def test_pinned_adapters_outlive_a_flood(serve: Serve) -> None:
    served = serve(slots=3)
    refs, mades = fill(served, 8)
    served.adapters.pin(refs[0])
    slot = served.acquire(refs[0])
    served.adapters.release(refs[0])
    for ref in refs[1:]:
        served.acquire(ref)
        served.adapters.release(ref)
    held = resident(served, refs[0])
    assert held is not None
    assert (held.slot, held.pinned) == (slot, True)
    assert_served(served, mades[0], slot)
    served.adapters.pin(refs[1])
    with pytest.raises(Conflict):
        served.adapters.pin(refs[2])


def test_a_forgotten_adapter_finishes_its_answers_and_goes(serve: Serve) -> None:
    served = serve()
    ref = served.publish(make_adapter(served.base))
    slot = served.acquire(ref)
    served.store.delete("ann", "pet")
    served.adapters.forget(ref)
    assert_served(served, make_adapter(served.base), slot)
    served.adapters.release(ref)
    assert served.adapters.snapshot() == []
    served.adapters.prepare(ref)
    with pytest.raises(AdapterNotFound, match="pet@1"):
        served.acquire(ref)


def test_what_was_forgotten_while_it_loaded_leaves_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    ref = served.publish(make_adapter(served.base))
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    plain_read = served.store.read

    def slow_read(ref: AdapterRef) -> Content:
        begun.set()
        go_on.wait(10)
        return plain_read(ref)

    monkeypatch.setattr(served.store, "read", slow_read)
    served.adapters.on_loaded = ended.set
    served.adapters.prepare(ref)
    assert begun.wait(10)
    assert [r.state for r in served.adapters.snapshot()] == [AdapterState.LOADING]
    served.adapters.forget(ref)
    go_on.set()
    assert ended.wait(10)
    assert served.adapters.snapshot() == []


def _without(made: Made, name: str) -> Made:
    return Made(made.manifest, {key: t for key, t in made.tensors.items() if key != name})


def _with(made: Made, name: str, tensor: Tensor) -> Made:
    return Made(made.manifest, made.tensors | {name: tensor})


def _manifest(made: Made, **fields: object) -> Made:
    return Made(dataclasses.replace(made.manifest, **fields), made.tensors)  # type: ignore[arg-type]


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoil", "error", "reason"),
    [
        (lambda m: _without(m, f"{Q}.d"), InvalidAdapter, rf"'{Q}\.d' is missing"),
        (
            lambda m: _with(m, f"{Q}.e", torch.ones(2)),
            InvalidAdapter,
            rf"'{Q}\.e' belongs to no target",
        ),
        (
            lambda m: _with(m, f"{Q}.d", torch.ones(9)),
            InvalidAdapter,
            rf"'{Q}\.d' has shape \[9\], not \[8\]",
        ),
        (
            lambda m: _with(m, f"{Q}.b", torch.ones(48, 1)),
            InvalidAdapter,
            rf"'{Q}\.b' has shape \[48, 1\], not \[48\]",
        ),
        (
            lambda m: _with(m, f"{Q}.b", torch.full((48,), torch.inf)),
            AdapterNotFinite,
            rf"'{Q}\.b' holds a value that is not finite: train",
        ),
        (
            lambda m: _with(m, f"{Q}.d", torch.tensor([1.0] * 7 + [torch.nan])),
            InvalidAdapter,
            rf"'{Q}\.d' holds a value that is not finite",
        ),
        (
            lambda m: _manifest(_with(m, f"{Q}.b", torch.full((48,), 1e30)), scale=1e30),
            AdapterNotFinite,
            r"the update of layer 'model.* the scale 1e\+30, reach",
        ),
        (
            lambda m: _with(_with(m, f"{Q}.b", torch.full((48,), 1e20)), f"{Q}.d", torch.ones(8)),
            AdapterNotFinite,
            f"the update of layer '{Q}' overflows.*reach 8e\\+20",
        ),
        (lambda m: _manifest(m, method="magic"), InvalidAdapter, "'magic' is unknown.*vera"),
        (lambda m: _manifest(m, rank=33), InvalidAdapter, "rank 33 is not between 1 and 32"),
        (lambda m: _manifest(m, rank=0), InvalidAdapter, "rank 0 is not"),
        (lambda m: _manifest(m, scale=torch.inf), InvalidAdapter, "scale inf"),
        (lambda m: _manifest(m, targets=()), InvalidAdapter, "targets no linear"),
        (
            lambda m: _manifest(m, targets=("lm_head",)),
            InvalidAdapter,
            "target 'lm_head' is not a linear",
        ),
        (
            lambda m: _manifest(m, base_name="robin", base_fingerprint="f00"),
            InvalidAdapter,
            "trained on base 'robin' with fingerprint f00, this server holds 'tiny-llama'",
        ),
        (
            lambda m: _manifest(m, base_fingerprint=SHORT_NAMES["smollm2-q4_1"].fingerprint),
            InvalidAdapter,
            "serve its base with `--model smollm2-q4_1`, or train again on this one",
        ),
        (lambda m: _manifest(m, basis_sha256="f" * 64), BasisMismatch, "seed 7"),
        (lambda m: _manifest(m, basis_spec="other/v2"), BasisMismatch, "other/v2"),
        (lambda m: _manifest(m, seed=-1), InvalidAdapter, "seed -1"),
    ],
)
def test_an_unfit_adapter_is_refused_by_name_and_leaves_nothing(
    serve: Serve, spoil: Callable[[Made], Made], error: type[Exception], reason: str
) -> None:
    served = serve()
    good = make_adapter(served.base)
    ref = served.publish(spoil(good))
    with pytest.raises(error, match=reason):
        served.acquire(ref)
    with pytest.raises(error, match=reason):
        served.adapters.acquire(ref)
    assert served.adapters.snapshot() == []
    assert_served(served, good, served.acquire(served.publish(good)))


def test_another_base_is_refused_naming_both_fingerprints(serve: Serve) -> None:
    served = serve()
    other = tiny_base("llama", seed=1)
    ref = served.publish(make_adapter(other))
    with pytest.raises(InvalidAdapter) as refusal:
        served.acquire(ref)
    assert other.fingerprint in str(refusal.value)
    assert served.base.fingerprint in str(refusal.value)


def test_a_damaged_file_is_refused_and_the_next_prepare_tries_again(serve: Serve) -> None:
    served = serve()
    made = make_adapter(served.base)
    ref = served.publish(made)
    path = served.store.path(ref)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(AdapterCorrupt):
        served.acquire(ref)
    path.write_bytes(whole)
    with pytest.raises(AdapterCorrupt):
        served.acquire(ref)
    served.adapters.prepare(ref)
    assert_served(served, made, served.acquire(ref))


def test_an_unforeseen_failure_reaches_the_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    ref = served.publish(make_adapter(served.base))

    def fail(_: AdapterRef) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(served.store, "read", fail)
    with pytest.raises(Unavailable, match=r"pet@1 could not be loaded.*Input/output"):
        served.acquire(ref)


def test_values_too_large_for_half_precision_are_refused(serve: Serve) -> None:
    served = serve(tiny_base("llama", dtype=torch.float16))
    made = make_adapter(served.base)
    ref = served.publish(_with(made, f"{Q}.b", torch.full((48,), 1e6)))
    with pytest.raises(InvalidAdapter, match=r"too large for torch\.float16"):
        served.acquire(ref)


def test_a_copy_that_fails_gives_the_slot_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(slots=1)
    made = make_adapter(served.base)
    ref = served.publish(made)

    def fail(slot: int, row: Tensor) -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(served.adapters._bank, "write", fail)
        with pytest.raises(RuntimeError, match="device lost"):
            served.acquire(ref)
    assert_served(served, made, served.acquire(ref))


def test_too_little_memory_is_refused_with_what_would_do(serve: Serve) -> None:
    base = tiny_base("llama", num_hidden_layers=20)
    with pytest.raises(ValueError, match=r"adapter_memory_mb=1 holds no adapter.*at least \d+"):
        serve(base, memory_mb=1, max_rank=1024)


def test_slots_fit_the_memory(serve: Serve) -> None:
    served = serve(memory_mb=1, slots=10_000)
    refs, mades = fill(served, 3)
    for ref, made in zip(refs, mades, strict=True):
        assert_served(served, made, served.acquire(ref))
    longest = max(held.bytes for held in served.adapters.snapshot())
    assert 100 < served.adapters.slots < 2**20 / longest


def test_loading_after_close_is_refused(serve: Serve) -> None:
    served = serve()
    ref = served.publish(make_adapter(served.base))
    served.adapters.close()
    with pytest.raises(Unavailable, match="stopping"):
        served.adapters.prepare(ref)
    assert served.adapters.snapshot() == []


def test_many_threads_may_prepare_pin_forget_and_look(serve: Serve) -> None:
    served = serve(slots=3)
    refs, mades = fill(served, 6)
    stop = threading.Event()
    troubles: list[Exception] = []

    def disturb(offset: int) -> None:
        turn = offset
        while not stop.is_set():
            ref = refs[turn % len(refs)]
            try:
                served.adapters.prepare(ref)
                served.adapters.pin(refs[0])
                served.adapters.unpin(refs[0])
                if turn % 35 == 0:
                    served.adapters.forget(ref)
                served.adapters.snapshot()
            except Exception as error:
                troubles.append(error)
            turn += 1
            time.sleep(0.0005)

    threads = [threading.Thread(target=disturb, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        _serve_for(served, refs, mades, seconds=1.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert troubles == []


def _serve_for(
    served: Served, refs: list[AdapterRef], mades: list[Made], *, seconds: float
) -> None:
    """Answer with pairs of adapters while others load and leave; no answer may change."""
    tokens = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    expected = [
        [merged_logits(served.base, made, row) for row in tokens] for made in (*mades, None)
    ]
    deadline, turn, answers = time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline or answers <= 30 or served.adapters.loads <= len(refs):
        first, second = turn % len(refs), (turn * 3 + 1) % len(refs)
        slots = [served.acquire(refs[first]), served.acquire(refs[second])]
        logits = served.logits(tokens, [slots[0], slots[1], 0])
        for row, who in enumerate((first, second, -1)):
            torch.testing.assert_close(logits[row], expected[who][row], rtol=2e-4, atol=2e-4)
        served.adapters.release(refs[first])
        served.adapters.release(refs[second])
        turn += 1
        answers += 3


def test_matrices_that_residents_read_are_counted(serve: Serve) -> None:
    served = serve(slots=1)
    assert served.adapters.vector_bytes > 0
    empty = served.adapters.matrix_bytes
    refs, _ = fill(served, 1)
    served.acquire(refs[0])
    loaded = served.adapters.steps.bases.loaded.values()
    halves = [half for it in loaded for p in it.pairs.values() for half in (p.a, p.bt)]
    once = {half.data_ptr(): half.nbytes for half in halves}
    assert served.adapters.matrix_bytes == empty + sum(once.values()) > empty
    assert sum(half.nbytes for half in halves) > sum(once.values()), "linears share them"
