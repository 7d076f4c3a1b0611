"""Training keeps to what a latency target leaves, whatever the engine and the load are like."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.pulse import Pulse, PulseReader
from server.training.throttle import LEAST, Throttle


@dataclass
class Engine:
    """One whose steps become longer by `slower` times the share that training takes."""

    pulse: Pulse
    alone_s: float
    slower: float
    throttle: Throttle
    now: float = 0.0
    shares: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def run(self, steps: int, answers: int = 4) -> None:
        reader = PulseReader(self.pulse.path)
        for _ in range(steps):
            share = self.throttle.share
            ratio = 1 + self.slower * share * self.throttle.grain
            self.shares.append(share)
            self.ratios.append(ratio)
            self.now += self.alone_s * ratio
            self.pulse.running(answers)
            self.pulse.step({self.alone_s * ratio: answers})
            self.throttle.look(reader.read(), self.now)

    def rest(self, seconds: float) -> None:
        self.pulse.running(0)
        self.now += seconds
        self.throttle.look(PulseReader(self.pulse.path).read(), self.now)


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Pulse:
    return Pulse(tmp_path_factory.mktemp("pulse") / "pulse")


@settings(max_examples=20, deadline=None)
@given(alone_s=st.floats(0.001, 0.05), slower=st.floats(0, 20), target=st.floats(1.05, 3))
def test_the_target_is_kept_and_what_it_leaves_is_used(
    pulse: Pulse, alone_s: float, slower: float, target: float
) -> None:
    engine = Engine(pulse, alone_s, slower, Throttle(target))
    engine.run(5000)
    late = slice(2500, None)
    within = [ratio <= target * 1.03 for ratio in engine.ratios[late]]  # buckets are 2 % wide
    share = sum(engine.shares[late]) / 2500
    if slower * LEAST <= target - 1:  # else even the least may be too much
        assert sum(within) >= 0.95 * len(within)
    assert share >= max(0.9 * LEAST, 0.5 * min(1, (target - 1) / max(slower, 1e-9)))


@given(
    slower=st.floats(0, 50),
    target=st.floats(1, 2),
    answers=st.lists(st.integers(0, 5), min_size=1, max_size=12),
)
@settings(max_examples=20, deadline=None)
def test_a_share_is_a_share_and_no_requests_mean_full_speed(
    pulse: Pulse, slower: float, target: float, answers: list[int]
) -> None:
    engine = Engine(pulse, 0.002, slower, Throttle(target))
    for running in answers:
        engine.run(70, running)
        throttle = engine.throttle
        assert throttle.share == 0 or LEAST <= throttle.share <= 1
        assert math.log2(throttle.grain).is_integer()
        if running == 0:
            assert (throttle.share, throttle.grain) == (1.0, 1.0)


def test_the_first_request_is_listened_to_before_training_goes_on(pulse: Pulse) -> None:
    engine = Engine(pulse, 0.002, 1.0, Throttle(1.3))
    engine.rest(1)
    assert engine.throttle.share == 1
    engine.run(66)
    assert engine.throttle.share == LEAST
    assert engine.shares[1:60] == [0.0] * 59


def test_what_was_learnt_outlives_a_silence(pulse: Pulse) -> None:
    engine = Engine(pulse, 0.002, 0.1, Throttle(1.3))
    engine.run(1500)
    learnt = engine.throttle.share
    engine.rest(100)
    engine.run(2)
    assert engine.throttle.share >= learnt > 0.3


def test_crowded_passes_become_smaller_and_grow_again(pulse: Pulse) -> None:
    engine = Engine(pulse, 0.002, 12.0, Throttle(1.3))
    engine.run(3000)
    assert engine.throttle.grain < 1
    engine.slower = 0.0
    engine.run(6000)
    assert engine.throttle.grain == 1


@pytest.mark.parametrize("answers", [1, 32])
def test_an_engine_that_takes_no_steps_holds_nobody_up(pulse: Pulse, answers: int) -> None:
    throttle = Throttle(1.3)
    pulse.running(answers)
    reading = PulseReader(pulse.path).read()
    throttle.look(reading, 0.0)
    assert throttle.share == 0
    throttle.look(reading, 2.5)
    assert throttle.share == LEAST
    throttle.look(reading, 11.0)  # it was killed, and its last word still stands
    assert throttle.share == 1


def test_without_a_target_training_does_not_give_way(pulse: Pulse) -> None:
    engine = Engine(pulse, 0.002, 50.0, Throttle(math.inf))
    engine.run(4000)
    assert engine.shares[-1] == 1
