"""The loop with a fake engine: delivery, fairness, cancellation, deadlines, failure."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import pytest

from adapters_store.manifest import AdapterRef
from server.engine.blocks import BlockPool
from server.engine.sequence import FinishReason, SamplingParams
from server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidAdapter,
    InvalidRequest,
    LogitsNotFinite,
    QueueFull,
    Unavailable,
)
from server.metrics import Metrics
from server.scheduler.intake import Handle
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from tests.scheduler.fakes import CountingEngine, FakeSlots, NumberDecoder

LIMITS = Limits(max_rows=4, max_step_tokens=16, max_waiting=8, max_context=64)


@dataclass
class Heard:
    """Every update of a request, and a way to wait for its end."""

    answers: int = 1
    deltas: list[TextDelta] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def listener(self) -> CallbackListener:
        return CallbackListener(self.hear)

    def hear(self, delta: TextDelta) -> None:
        self.deltas.append(delta)
        if sum(each.finish is not None for each in self.deltas) == self.answers:
            self.done.set()

    def wait(self) -> "Heard":
        assert self.done.wait(10), "the answer never ended"
        return self

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def last(self) -> TextDelta:
        return self.deltas[-1]


@dataclass
class Rig:
    engine: CountingEngine
    slots: FakeSlots
    pool: BlockPool
    metrics: Metrics
    loop: ServingLoop

    def ask(self, prompt: int = 3, **changes: object) -> tuple[Heard, Handle]:
        heard = Heard(answers=int(str(changes.get("n", 1))))
        return heard, self.loop.submit(request(prompt, **changes), heard.listener)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No step runs in here: all that is asked is there before any of it is answered."""
        before, go = self.engine.before_step, threading.Event()

        def wait() -> None:
            assert go.wait(10)
            before()

        self.engine.before_step = wait
        yield
        go.set()

    def metric(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(
            f"verandah:{name}", {"model_name": "base", **labels}
        )
        return found or 0.0


def request(prompt: int = 3, **changes: object) -> Generation:
    params = SamplingParams(max_tokens=4)
    for name in changes.keys() & {it.name for it in fields(params)}:
        params = replace(params, **{name: changes.pop(name)})  # type: ignore[arg-type]
    made = Generation("r", "owner", tuple(range(1, prompt + 1)), params)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(params=[0, 1], ids=["waiting", "ahead"])
def make_rig(request: pytest.FixtureRequest) -> Iterator[Callable[..., Rig]]:
    """All that follows holds with a step in flight while the next is planned, and without."""
    loops: list[ServingLoop] = []

    def make(blocks: int = 32, eos: int = 999, limits: Limits = LIMITS) -> Rig:
        engine, slots, pool, metrics = (
            CountingEngine(ahead=request.param),
            FakeSlots(),
            BlockPool(blocks, 4),
            Metrics("base"),
        )
        loop = ServingLoop(
            engine,
            slots,
            pool,
            NumberDecoder,
            eos=frozenset({eos}),
            limits=limits,
            metrics=metrics,
        )
        loop.start()
        loops.append(loop)
        return Rig(engine, slots, pool, metrics, loop)

    yield make
    for loop in loops:
        loop.stop(0)


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def test_an_answer_arrives_token_by_token(rig: Rig) -> None:
    heard, _ = rig.ask()
    heard.wait()
    assert heard.text == " 3 4 5 6"
    assert [delta.finish for delta in heard.deltas] == [None, None, None, FinishReason.LENGTH]
    assert [piece.token_id for delta in heard.deltas for piece in delta.tokens] == [3, 4, 5, 6]
    assert rig.pool.num_free == rig.pool.num_total
    assert rig.metric("generation_tokens_total") == 4
    assert rig.metric("prompt_tokens_total") == 3
    assert rig.metric("request_success_total", finished_reason="length") == 1


def test_end_of_text_ends_and_is_not_shown(make_rig: Callable[..., Rig]) -> None:
    heard, _ = make_rig(eos=5).ask()
    assert heard.wait().text == " 3 4"
    assert heard.last.finish is FinishReason.STOP
    assert heard.last.stop_reason is None


def test_the_end_of_a_turn_ends_the_request_that_names_it(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(eos=6)
    turn, _ = rig.ask(turn_ends=frozenset({5}))
    other, _ = rig.ask()
    assert turn.wait().text == " 3 4"
    assert (turn.last.finish, turn.last.stop_reason) == (FinishReason.STOP, None)
    assert other.wait().text == " 3 4 5"


def test_ignore_eos_goes_on(make_rig: Callable[..., Rig]) -> None:
    heard, _ = make_rig(eos=5).ask(ignore_eos=True, turn_ends=frozenset({4}))
    assert heard.wait().text == " 3 4 5 6"


def test_a_stop_string_and_a_stop_token_say_which(rig: Rig) -> None:
    text, _ = rig.ask(stop=("4 5",))
    token, _ = rig.ask(stop_token_ids=frozenset({4}))
    assert (text.wait().text, text.last.stop_reason) == (" 3 ", "4 5")
    assert (token.wait().text, token.last.stop_reason) == (" 3", 4)


def test_a_long_prompt_runs_in_chunks_beside_others(rig: Rig) -> None:
    long, _ = rig.ask(prompt=50)
    short, _ = rig.ask(prompt=2)
    assert long.wait().text == " 50 51 52 53"
    assert short.wait().text == " 2 3 4 5"
    assert max(sum(length for _, length in step) for step in rig.engine.steps) <= 16


def test_n_answers_come_back_by_index(rig: Rig) -> None:
    heard, handle = rig.ask(n=3)
    heard.wait()
    assert {delta.index for delta in heard.deltas} == {0, 1, 2}
    assert len({answer.sequence.seed for answer in handle.answers}) == 3


def test_prompt_scores_come_once_and_whole(rig: Rig) -> None:
    heard, _ = rig.ask(prompt=40, prompt_logprobs=True, max_tokens=0)
    scores = heard.wait().last.prompt_logprobs
    assert scores is not None
    assert scores[0] is None
    assert [score.token_id for score in scores[1:] if score] == list(range(2, 41))
    assert heard.last.tokens == ()
    assert heard.last.finish is FinishReason.LENGTH


def test_preempted_answers_are_the_same_in_the_end(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(blocks=8)
    with rig.held():
        asked = [rig.ask(prompt=6, max_tokens=18)[0] for _ in range(4)]
    expected = "".join(f" {number}" for number in range(6, 24))
    assert [heard.wait().text for heard in asked] == [expected] * 4
    assert rig.metric("num_preemptions_total") > 0
    assert rig.pool.num_free == 8


def test_a_cancelled_request_frees_its_memory(rig: Rig) -> None:
    second_step, cancelled = threading.Event(), threading.Event()

    def wait_for_the_cancellation() -> None:
        if rig.engine.steps:
            second_step.set()
            assert cancelled.wait(5)

    rig.engine.before_step = wait_for_the_cancellation
    heard, handle = rig.ask(max_tokens=60)
    assert second_step.wait(5)
    rig.loop.cancel(handle)
    cancelled.set()
    assert heard.wait().last.finish is FinishReason.CANCELLED
    assert len(rig.engine.steps) == 2
    assert rig.pool.num_free == rig.pool.num_total
    rig.loop.cancel(handle)
    assert rig.ask()[0].wait().text == " 3 4 5 6"


def test_a_deadline_ends_running_and_waiting_requests(rig: Rig) -> None:
    rig.engine.before_step = lambda: time.sleep(0.02)
    running, _ = rig.ask(max_tokens=60, timeout_s=0.05)
    waiting, _ = rig.ask(adapter=AdapterRef("o", "slow", 1), timeout_s=0.05)
    for heard in (running, waiting):
        assert heard.wait().last.finish is FinishReason.DEADLINE
        assert isinstance(heard.last.error, DeadlineExceeded)


def test_waiting_for_an_adapter_blocks_nobody(rig: Rig) -> None:
    ref = AdapterRef("o", "late", 1)
    late, _ = rig.ask(adapter=ref)
    assert rig.ask()[0].wait().last.finish is FinishReason.LENGTH
    assert not late.deltas
    rig.slots.loaded.add(ref)
    rig.loop.wake()
    assert late.wait().last.finish is FinishReason.LENGTH
    assert rig.slots.prepared == [ref]
    assert rig.slots.in_use == []


def test_a_loaded_adapter_wakes_an_idle_loop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.scheduler.loop._IDLE_WAIT_S", 60)
    assert rig.ask()[0].wait().last.finish is FinishReason.LENGTH  # the wait from before is over
    ref = AdapterRef("o", "late", 1)
    late, _ = rig.ask(adapter=ref)
    time.sleep(0.05)
    rig.slots.loaded.add(ref)
    rig.loop.wake()
    assert late.wait().last.finish is FinishReason.LENGTH


def test_adapters_in_constant_use_cannot_keep_all_slots(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.scheduler.admission._SLOT_PATIENCE_S", 0.05)
    hot, cold = AdapterRef("o", "hot", 1), AdapterRef("o", "cold", 1)
    rig.slots.loaded, rig.slots.max_in_use = {hot, cold}, 1
    rig.engine.before_step = lambda: time.sleep(0.002)
    ended = threading.Event()

    def ask_again(delta: TextDelta) -> None:  # two of these overlap: the slot is never idle
        if delta.finish is FinishReason.LENGTH and not ended.is_set():
            rig.loop.submit(request(adapter=hot, max_tokens=7), CallbackListener(ask_again))

    for max_tokens in (5, 9):
        rig.loop.submit(request(adapter=hot, max_tokens=max_tokens), CallbackListener(ask_again))
    answer, _ = rig.ask(adapter=cold)
    try:
        assert answer.wait().text == " 3 4 5 6"
    finally:
        ended.set()


def test_a_device_that_fails_to_take_an_adapter_does_not_end_the_loop(rig: Rig) -> None:
    ref = AdapterRef("o", "large", 1)
    rig.slots.broken[ref] = RuntimeError("out of memory")
    heard, _ = rig.ask(adapter=ref)
    assert isinstance(heard.wait().last.error, Unavailable)
    assert rig.ask()[0].wait().last.finish is FinishReason.LENGTH


def test_a_decoder_that_fails_ends_only_its_own_answer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_decoder: NumberDecoder, token_id: int) -> str:
        raise ValueError(f"no text for {token_id}")

    with monkeypatch.context() as patched:
        patched.setattr(NumberDecoder, "push", fail)
        heard, _ = rig.ask()
        assert isinstance(heard.wait().last.error, Unavailable)
    assert rig.ask()[0].wait().text == " 3 4 5 6"
    assert rig.pool.num_free == rig.pool.num_total


def test_a_broken_adapter_ends_only_its_own_request(rig: Rig) -> None:
    ref = AdapterRef("o", "broken", 1)
    rig.slots.broken[ref] = InvalidAdapter("it is broken")
    heard, _ = rig.ask(adapter=ref)
    assert heard.wait().last.finish is FinishReason.ERROR
    assert heard.last.error is rig.slots.broken[ref]
    assert rig.ask()[0].wait().last.finish is FinishReason.LENGTH


def test_a_failed_step_fails_its_rows_and_the_loop_lives(rig: Rig) -> None:
    def explode() -> None:
        rig.engine.before_step = lambda: None
        raise RuntimeError("a kernel failed")

    rig.engine.before_step = explode
    heard, _ = rig.ask()
    assert isinstance(heard.wait().last.error, Unavailable)
    assert rig.ask()[0].wait().text == " 3 4 5 6"
    assert rig.pool.num_free == rig.pool.num_total


def test_a_row_that_overflows_ends_alone(rig: Rig) -> None:
    rig.engine.overflows = {1}
    bad, _ = rig.ask()
    good, _ = rig.ask()
    assert bad.wait().last.finish is FinishReason.ERROR
    assert isinstance(bad.last.error, LogitsNotFinite)
    assert good.wait().text == " 3 4 5 6"


def test_a_listener_that_raises_loses_only_its_own_answer(rig: Rig) -> None:
    def faulty(delta: TextDelta) -> None:
        raise RuntimeError("the client broke")

    rig.loop.submit(request(max_tokens=60), CallbackListener(faulty))
    assert rig.ask()[0].wait().text == " 3 4 5 6"


def test_a_full_queue_says_when_to_come_back(rig: Rig) -> None:
    ref = AdapterRef("o", "never", 1)
    for _ in range(12):
        rig.ask(adapter=ref)
    with pytest.raises(QueueFull) as full:
        rig.ask()
    assert 1 <= full.value.retry_after_s <= 60


def test_one_owner_cannot_fill_the_queue_for_all(rig: Rig) -> None:
    ref = AdapterRef("o", "never", 1)
    for _ in range(12):
        rig.ask(adapter=ref, owner="heavy")
    for count, owner in ((6, "light"), (4, "third"), (2, "tenth")):
        waiting = [rig.ask(adapter=ref, owner=owner) for _ in range(count)]
        if owner == "tenth":
            break
        with pytest.raises(QueueFull):
            rig.ask(owner=owner)
    with pytest.raises(QueueFull):  # twice as many answers wait as the queue is for
        rig.ask(owner="eleventh")
    for _, handle in waiting:
        rig.loop.cancel(handle)
    for heard, _ in waiting:
        heard.wait()
    assert rig.ask(owner="eleventh")[0].wait().text == " 3 4 5 6"


def test_what_can_never_fit_is_refused(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(blocks=5)
    with pytest.raises(ContextLengthExceeded, match="lower max_tokens from 3 to 2") as answer:
        rig.ask(prompt=18, max_tokens=3)
    assert answer.value.param == "max_tokens"
    with pytest.raises(ContextLengthExceeded, match="shorten prompt") as prompt:
        rig.ask(prompt=20, max_tokens=3)
    assert prompt.value.param == "prompt"
    with pytest.raises(InvalidRequest, match="no tokens"):
        rig.ask(prompt=0)
    assert rig.ask(prompt=18, max_tokens=2)[0].wait().text == " 18 19"


def test_stop_drains_and_then_refuses(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.engine.before_step = lambda: time.sleep(0.005)
    heard, _ = rig.ask(max_tokens=10)
    rig.loop.stop(drain_timeout_s=5)
    assert heard.last.finish is FinishReason.LENGTH
    assert not rig.loop.alive
    with pytest.raises(Unavailable):
        rig.ask()


def test_stop_cancels_what_outlasts_the_drain(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.engine.before_step = lambda: time.sleep(0.02)
    heard, _ = rig.ask(max_tokens=60)
    rig.loop.stop(drain_timeout_s=0.05)
    assert heard.last.finish is FinishReason.CANCELLED


def test_one_owner_cannot_starve_another(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(limits=replace(LIMITS, max_rows=1, max_waiting=32))
    ended: list[str] = []

    def ask(owner: str) -> Heard:
        heard = Heard()

        def hear(delta: TextDelta) -> None:
            ended.extend([owner] * (delta.finish is not None))
            heard.hear(delta)

        rig.loop.submit(request(owner=owner), CallbackListener(hear))
        return heard

    with rig.held():
        asked = [ask(owner) for owner in ["greedy"] * 12 + ["modest"]]
    for heard in asked:
        heard.wait()
    assert ended.index("modest") <= 4


def test_answers_of_a_loop_that_hangs_end_and_no_more_are_taken(rig: Rig) -> None:
    hangs, go = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        go.wait(10)

    rig.engine.before_step = hang
    heard, _ = rig.ask()
    assert hangs.wait(10)
    assert rig.loop.progress.now.what == "a step of 3 tokens"
    rig.loop.give_up("a step of 3 tokens has taken over 20 s")
    assert isinstance(heard.wait().last.error, Unavailable)
    assert "a step of 3 tokens" in rig.loop.problem
    assert not rig.loop.alive
    with pytest.raises(Unavailable):
        rig.ask()
    go.set()


def test_no_end_token_ends_an_answer_below_its_min_tokens(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(eos=5)  # the third token of an answer to three
    for least, reason in [(0, FinishReason.STOP), (2, FinishReason.STOP), (3, FinishReason.LENGTH)]:
        heard, _ = rig.ask(min_tokens=least)
        assert heard.wait().last.finish is reason
    heard, _ = rig.ask(min_tokens=3, stop_token_ids=frozenset({4, 6}))
    assert heard.wait().last.stop_reason == 6


def test_no_stop_string_ends_an_answer_below_its_min_tokens(rig: Rig) -> None:
    for least, text in [(0, " 3"), (1, " 3"), (2, " 3 4 5 6")]:
        heard, _ = rig.ask(stop=(" 4",), min_tokens=least)
        heard.wait()
        assert heard.text == text
    heard, _ = rig.ask(stop=("4 5",), min_tokens=2)  # begins before, ends after
    heard.wait()
    assert heard.text == " 3 "
    heard, _ = rig.ask(stop=(" 6",), min_tokens=4)  # completes with the last token
    assert (heard.wait().last.stop_reason, heard.text) == (None, " 3 4 5 6")


def test_an_answer_may_show_what_ended_it(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(eos=5)
    cases: list[tuple[dict[str, object], str | int | None, str]] = [
        ({"stop": ("4",)}, "4", " 3 4"),
        ({"stop_token_ids": frozenset({4})}, 4, " 3 4"),
        ({}, None, " 3 4 5"),
        ({"stop": ("4 5",)}, "4 5", " 3 4 5"),
    ]
    for stops, reason, text in cases:
        heard, _ = rig.ask(3, **stops | {"include_stop": True})
        assert (heard.wait().last.stop_reason, heard.text) == (reason, text)
