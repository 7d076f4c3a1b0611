"""A model that is slowed down computes the same, and rests between its linears."""

from dataclasses import dataclass, field

import pytest
import torch

from server.bases.model import BaseModel
from server.pulse import Pulse
from server.training.colocated.compute_throttle import ComputeThrottle
from server.training.colocated.share_controller import ShareController
from tests.models import Kind, tiny_base

WORK_S = 0.001  # that the clock goes on between two questions for the time


class Fixed(ShareController):
    """A share that nothing changes while requests run."""

    def __init__(self, share: float) -> None:
        super().__init__(1.3)
        self.fixed = share

    @property
    def share(self) -> float:
        return self.fixed if self.busy else 1.0


@dataclass
class Time:
    """A clock that goes on when it is asked, and when somebody sleeps."""

    now: float = 0.0
    tick: float = WORK_S
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        self.now += self.tick
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@dataclass
class Rig:
    controller: ShareController
    pulse: Pulse = field(default_factory=Pulse)
    time: Time = field(default_factory=Time)

    def throttle(self) -> ComputeThrottle:
        return ComputeThrottle(
            self.controller, self.pulse, clock=self.time.clock, sleep=self.time.sleep
        )


def passed(base: BaseModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and a gradient through all layers."""
    tokens = torch.arange(3, 15)[None]
    embedded = base.model.get_input_embeddings()(tokens).detach().requires_grad_()
    logits = base.model(inputs_embeds=embedded).logits
    logits.square().sum().backward()
    assert embedded.grad is not None
    return logits.detach(), embedded.grad


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "phi"])
def test_a_slowed_model_computes_the_same_and_rests_both_ways(kind: Kind) -> None:
    expected = passed(tiny_base(kind))
    base, rig = tiny_base(kind), Rig(Fixed(0.5))
    rig.throttle().slow_down(base)
    rig.pulse.running = 1
    found = passed(base)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
    assert len(rig.time.slept) == 2 * len(base.targets)


def test_without_requests_there_is_no_rest_and_no_question_for_the_time() -> None:
    base, rig = tiny_base("llama"), Rig(ShareController(1.3))
    throttle = rig.throttle()
    throttle.slow_down(base)
    before = rig.time.now
    passed(base)
    assert rig.time.slept == []
    assert rig.time.now == before


def test_whoever_may_work_all_the_time_never_rests() -> None:
    base, rig = tiny_base("llama"), Rig(Fixed(1.0))
    rig.throttle().slow_down(base)
    rig.pulse.running = 1
    passed(base)
    assert rig.time.slept == []


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_the_device_is_waited_for_once_a_rest_and_its_work_counts(share: float) -> None:
    """It is a millisecond behind, so without that its work would go on while the host rests."""
    rig, finished = Rig(Fixed(share), time=Time(tick=0.0)), 0
    rig.pulse.running = 1

    def finish() -> None:
        nonlocal finished
        rig.time.now += 0.001
        finished += 1

    throttle = ComputeThrottle(
        rig.controller, rig.pulse, finish=finish, clock=rig.time.clock, sleep=rig.time.sleep
    )
    for _ in range(5000):
        rig.time.now += 0.0002
        throttle.rest()
    assert finished == len(rig.time.slept)
    assert 1 - sum(rig.time.slept) / rig.time.now == pytest.approx(share, abs=0.02)
    if share > 0.9:
        assert finished < 500, "a rest so small must not be taken after each product"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_it_works_for_its_share_of_the_time(share: float) -> None:
    rig = Rig(Fixed(share), time=Time(tick=0.0))
    rig.pulse.running = 1
    throttle = rig.throttle()
    began = rig.time.now
    for _ in range(500):
        rig.time.now += WORK_S
        throttle.rest()
    took = rig.time.now - began
    assert 1 - sum(rig.time.slept) / took == pytest.approx(share, abs=0.02)


def test_a_pause_lasts_until_enough_was_heard() -> None:
    rig = Rig(ShareController(1.3), time=Time(tick=0.0))
    rig.pulse.running = 1

    def sleep(seconds: float) -> None:
        rig.time.sleep(seconds)
        rig.pulse.step({0.002: 1})

    throttle = ComputeThrottle(rig.controller, rig.pulse, clock=rig.time.clock, sleep=sleep)
    throttle.rest()
    assert 0.1 <= sum(rig.time.slept) < 0.5
    assert rig.controller.share == 1


def test_a_pause_ends_when_the_requests_do() -> None:
    rig = Rig(ShareController(1.3))
    rig.pulse.running = 1

    def sleep(seconds: float) -> None:
        rig.time.sleep(seconds)
        if len(rig.time.slept) == 30:
            rig.pulse.running = 0

    throttle = ComputeThrottle(rig.controller, rig.pulse, clock=rig.time.clock, sleep=sleep)
    throttle.rest()
    assert len(rig.time.slept) == 30
    assert rig.controller.share == 1


def test_what_was_no_work_on_the_device_costs_no_long_rest() -> None:
    rig = Rig(Fixed(0.1))
    rig.pulse.running = 1
    throttle = rig.throttle()
    throttle.rest()
    rig.time.now += 7.0  # a checkpoint was written
    throttle.rest()
    assert 0.4 < max(rig.time.slept) <= 0.5


def test_what_was_done_before_requests_came_costs_no_rest() -> None:
    rig, base = Rig(Fixed(0.1), time=Time(tick=0.0)), tiny_base("llama")
    rig.throttle().slow_down(base)
    rig.pulse.running = 1
    passed(base)
    rig.pulse.running = 0
    passed(base)
    assert not rig.controller.busy
    rig.time.now += 7.0
    rig.pulse.running = 1
    passed(base)
    assert rig.time.slept == []
