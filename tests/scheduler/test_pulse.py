"""The loop tells whoever trains beside it how it fares."""

import threading

import pytest

from server.engine.blocks import BlockPool
from server.engine.sequence import SamplingParams
from server.metrics import Metrics
from server.pulse import Pulse
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from tests.scheduler.fakes import CountingEngine, FakeSlots, NumberDecoder


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_loop_tells_steps_gaps_and_how_many_run(ahead: int) -> None:
    pulse = Pulse()
    loop = ServingLoop(
        CountingEngine(ahead=ahead),
        FakeSlots(),
        BlockPool(32, 4),
        NumberDecoder,
        eos=frozenset(),
        limits=Limits(max_rows=4, max_step_tokens=16, max_waiting=8, max_context=64),
        metrics=Metrics("base"),
        pulse=pulse,
    )
    seen: list[int] = []
    done = threading.Event()

    def hear(delta: TextDelta) -> None:
        seen.append(pulse.running)
        if delta.finish is not None:
            done.set()

    loop.start()
    loop.submit(
        Generation("r", "owner", (1, 2, 3), SamplingParams(max_tokens=6)), CallbackListener(hear)
    )
    assert done.wait(10)
    loop.stop(1)
    found = pulse.read()
    assert seen == [1] * 6
    assert sum(found.gaps) == 5
    assert found.steps >= 6
