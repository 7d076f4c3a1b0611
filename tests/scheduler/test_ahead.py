"""A step in flight while the next is planned changes no answer, whatever else happens."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_store.manifest import AdapterRef
from server.engine.blocks import BlockPool
from server.engine.sequence import FinishReason, SamplingParams
from server.metrics import Metrics
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from tests.scheduler.fakes import FakeSlots, NumberDecoder
from tests.scheduler.paged import VOCAB, PagedFake, next_token

EOS = 3
BLOCK = 4
REF = AdapterRef("o", "a", 1)


@dataclass
class Heard:
    tokens: list[int] = field(default_factory=list)
    finish: list[FinishReason] = field(default_factory=list)

    def hear(self, delta: TextDelta) -> None:
        self.tokens += [piece.token_id for piece in delta.tokens]
        if delta.finish is not None:
            self.finish.append(delta.finish)


def requests(rng: random.Random) -> Iterator[Generation]:
    """Prompts that often begin alike, of all lengths, with every way to end."""
    for number in range(rng.randint(1, 10)):
        prompt = [5] * rng.choice([0, 8]) + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))]
        params = SamplingParams(
            max_tokens=rng.randint(0, 12),
            temperature=0.0,
            ignore_eos=rng.random() < 0.7,
            stop_token_ids=frozenset({4} if rng.random() < 0.2 else ()),
            stop=("7 8",) if rng.random() < 0.2 else (),
        )
        adapter = REF if rng.random() < 0.3 else None
        yield Generation(f"r{number}", "owner", tuple(prompt), params, adapter)


def expected(request: Generation) -> tuple[list[int], FinishReason]:
    """One request alone, without a scheduler."""
    params, tokens, text = request.params, list[int](), ""
    while len(tokens) < params.max_tokens:
        tokens.append(next_token([*request.prompt, *tokens]))
        if tokens[-1] in params.stop_token_ids or (tokens[-1] == EOS and not params.ignore_eos):
            return tokens, FinishReason.STOP
        text += f" {tokens[-1]}"
        if any(stop in text for stop in params.stop):
            return tokens, FinishReason.STOP
    return tokens, FinishReason.LENGTH


@dataclass
class Rig:
    """A loop that is turned by hand, so that a run is a function of its seed."""

    engine: PagedFake
    blocks: int
    budget: int
    rows: int

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.blocks, BLOCK)
        self.slots = FakeSlots()
        self.slots.loaded.add(REF)
        self.loop = ServingLoop(
            self.engine,
            self.slots,
            self.pool,
            NumberDecoder,
            eos=frozenset({EOS}),
            limits=Limits(self.rows, self.budget, 100, 1000),
            metrics=Metrics("base"),
        )
        self.loop._intake.open = True

    def run(
        self, asked: list[Generation], rng: random.Random, *, cancel: float = 0.0
    ) -> list[Heard]:
        """Submit at random turns, cancel at random turns, until all have ended."""
        heard = [Heard() for _ in asked]
        waiting, handles = list(zip(asked, heard, strict=True)), []
        for _ in range(2000):
            if waiting and (rng.random() < 0.5 or not self.loop._answers._answers):
                request, listener = waiting.pop(0)
                handles.append(self.loop.submit(request, CallbackListener(listener.hear)))
            if handles and rng.random() < cancel:
                self.loop.cancel(rng.choice(handles))
            self.loop._iterate()
            if not waiting and not self.loop._answers._answers and not self.loop._in_flight:
                return heard
            self.loop._wake.set()
        raise AssertionError("the loop stands still")

    def check_all_is_given_back(self) -> None:
        assert self.pool.num_free == self.pool.num_total
        assert self.slots.in_use == []


def make_rig(
    rng: random.Random,
    ahead: int,
    fails_at_launch: frozenset[int] = frozenset(),
    fails_in_flight: frozenset[int] = frozenset(),
) -> Rig:
    engine = PagedFake(ahead, BLOCK, fails_at_launch, fails_in_flight)
    return Rig(engine, rng.randint(10, 20), rng.randint(5, 30), rng.randint(1, 6))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 1))
def test_every_answer_is_what_it_would_be_alone(seed: int, ahead: int) -> None:
    rng = random.Random(seed)
    asked = list(requests(rng))
    rig = make_rig(rng, ahead)
    for request, heard in zip(asked, rig.run(asked, rng), strict=True):
        tokens, finish = expected(request)
        assert (heard.tokens, heard.finish) == (tokens, [finish])
    rig.check_all_is_given_back()


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 1))
def test_cancellations_and_failures_leave_the_others_whole(seed: int, ahead: int) -> None:
    rng = random.Random(seed)
    asked = list(requests(rng))
    some = [frozenset(rng.sample(range(30), rng.randint(0, 3))) for _ in range(2)]
    rig = make_rig(rng, ahead, *some)
    for request, heard in zip(asked, rig.run(asked, rng, cancel=0.1), strict=True):
        tokens, finish = expected(request)
        assert len(heard.finish) == 1
        assert heard.tokens == tokens[: len(heard.tokens)]
        if heard.finish[0] not in (FinishReason.CANCELLED, FinishReason.ERROR):
            assert (heard.tokens, heard.finish) == (tokens, [finish])
    rig.check_all_is_given_back()


def test_one_step_is_in_flight_and_no_row_runs_past_its_limit() -> None:
    """Four tokens take four launches; only an end that the host must read costs one more."""
    for params, ahead, launches in (
        (SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True), 0, 4),
        (SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True), 1, 4),
        (SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, stop=(" ",)), 0, 1),
        (SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, stop=(" ",)), 1, 2),
    ):
        rig = Rig(PagedFake(ahead, BLOCK), 10, 16, 4)
        rig.run([Generation("r", "owner", (1, 2, 3), params)], random.Random(0))
        assert rig.engine.launches == launches
