"""A device that fails for good ends the loop, and with it the process; nobody is left waiting."""

import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from server.engine.blocks import BlockPool
from server.engine.sequence import Chunk
from server.errors import Unavailable
from server.metrics import Metrics
from server.scheduler.loop import ServingLoop
from tests.scheduler.fakes import CountingEngine, FakeSlots, FakeStep, NumberDecoder
from tests.scheduler.test_loop import LIMITS, Heard, request


@dataclass
class Rig:
    """A loop whose second step fails; `works` is whether its device still does."""

    ahead: int
    works: bool
    asked: int = 0
    lost: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.engine = CountingEngine(ahead=self.ahead)
        self.engine.fails_in_flight = {1}
        self.pool = BlockPool(32, 4)
        self.loop = ServingLoop(
            self.engine,
            FakeSlots(),
            self.pool,
            NumberDecoder,
            eos=frozenset(),
            limits=LIMITS,
            metrics=Metrics("base"),
            device_works=self.ask_device,
            on_device_lost=self.lost.set,
        )
        self.loop.start()

    def ask_device(self) -> bool:
        self.asked += 1
        return self.works

    def ask(self) -> Heard:
        heard = Heard()
        self.loop.submit(request(), heard.listener)
        return heard


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_loop_ends_when_its_device_is_lost_and_says_so_to_all(ahead: int) -> None:
    rig = Rig(ahead, works=False)
    heard = rig.ask()
    assert rig.lost.wait(10)
    assert isinstance(heard.wait().last.error, Unavailable)
    assert not rig.loop.alive
    with pytest.raises(Unavailable):
        rig.ask()
    assert rig.asked == 1
    assert len(rig.engine.steps) <= 2 + ahead
    assert rig.pool.num_free == rig.pool.num_total


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_failure_that_the_device_survived_ends_nothing_else(ahead: int) -> None:
    rig = Rig(ahead, works=True)
    assert isinstance(rig.ask().wait().last.error, Unavailable)
    assert rig.asked == 1
    assert rig.ask().wait().text == " 3 4 5 6"
    assert rig.loop.alive and not rig.lost.is_set()
    rig.loop.stop(0)
    assert not rig.lost.is_set()


@pytest.mark.parametrize("ahead", [0, 1])
def test_nothing_of_a_lost_device_is_freed(ahead: int) -> None:
    """torch aborts the process when it frees what a lost device owns."""
    rig = Rig(ahead, works=False)
    steps: list[weakref.ref[FakeStep]] = []
    launch = rig.engine.launch

    def remember(chunks: Sequence[Chunk]) -> FakeStep:
        steps.append(weakref.ref(step := launch(chunks)))
        return step

    rig.engine.launch = remember  # type: ignore[method-assign]
    rig.ask()
    assert rig.lost.wait(10)
    gc.collect()
    assert len(steps) == 2 + ahead
    assert [step() is None for step in steps] == [True, False, False][: 2 + ahead]
