"""A model that is slowed down computes the same, and rests between its layers."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from server.bases.model import BaseModel
from server.pulse import Pulse, PulseReader
from server.training.giving_way import GivingWay
from server.training.throttle import LEAST, Throttle
from tests.models import Kind, tiny_base

WORK_S = 0.001  # that the clock of these tests goes on between two questions for the time


@dataclass
class Time:
    """A clock that goes on when it is asked, and when somebody sleeps."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        self.now += WORK_S
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@dataclass
class Rig:
    pulse: Pulse
    throttle: Throttle
    time: Time
    giving: GivingWay


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    pulse, throttle, time = Pulse(tmp_path / "pulse"), Throttle(1.3), Time()
    reader = PulseReader(pulse.path)
    giving = GivingWay(throttle, reader, clock=time.clock, sleep=time.sleep)
    return Rig(pulse, throttle, time, giving)


def passed(base: BaseModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and a gradient through all layers."""
    tokens = torch.arange(3, 15)[None]
    embedded = base.model.get_input_embeddings()(tokens).detach().requires_grad_()
    logits = base.model(inputs_embeds=embedded).logits
    logits.square().sum().backward()
    assert embedded.grad is not None
    return logits.detach(), embedded.grad


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "phi"])
def test_a_slowed_model_computes_the_same_and_rests_both_ways(rig: Rig, kind: Kind) -> None:
    expected = passed(tiny_base(kind))
    base = tiny_base(kind)
    rig.giving.slow_down(base)
    rig.throttle.look(PulseReader(rig.pulse.path).read(), 0.0)
    rig.pulse.running(1)
    found = passed(base)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
    rests = [seconds for seconds in rig.time.slept if seconds > 2 * WORK_S]
    assert len(rests) >= 2 * base.num_layers - 1  # the first layer's time is a pause's


def test_without_requests_there_is_no_rest(rig: Rig) -> None:
    base = tiny_base("llama")
    rig.giving.slow_down(base)
    passed(base)
    assert rig.time.slept == []


def test_a_pause_ends_when_the_requests_do(rig: Rig) -> None:
    rig.pulse.running(1)
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        if len(asked) == 30:
            rig.pulse.running(0)
        rig.time.now += seconds

    rig.giving = GivingWay(
        rig.throttle, PulseReader(rig.pulse.path), clock=rig.time.clock, sleep=sleep
    )
    rig.giving.rest()
    assert 30 <= len(asked) < 60
    assert rig.throttle.share == 1


def test_the_rest_is_as_long_as_the_share_says(rig: Rig) -> None:
    rig.pulse.running(1)
    rig.giving.rest()
    assert rig.throttle.share == LEAST
    rig.time.slept.clear()
    rig.giving.rest()
    assert rig.time.slept == [pytest.approx(WORK_S * (1 / LEAST - 1))]


def test_what_was_no_work_on_the_device_costs_no_long_rest(rig: Rig) -> None:
    rig.pulse.running(1)
    rig.giving.rest()
    rig.time.now += 7.0  # a checkpoint was written
    rig.pulse.step({0.002: 1})
    rig.time.slept.clear()
    rig.giving.rest()
    assert max(rig.time.slept) <= 0.5


@pytest.mark.parametrize(("most", "now"), [(4096, 512), (256, 128), (100, 100)])
def test_small_grains_make_small_passes(rig: Rig, most: int, now: int) -> None:
    assert rig.giving.positions(most) == most
    rig.throttle._busy, rig.throttle._size = True, 1 / 8
    rig.pulse.running(1)
    assert rig.giving.positions(most) == now
