"""An engine's process notices that its loop has ended, and stops its training first."""

import pickle
from multiprocessing import Pipe

import pytest

from server.errors import Unavailable
from server.metrics import Metrics
from server.replicas.engine_process import EngineProcess
from server.replicas.messages import Call, EngineFacts, Stop
from tests.replicas.drill import Memory, Training, counting_loop


def test_an_engine_whose_loop_has_ended_does_not_go_on_for_who_keeps_asking() -> None:
    ours, theirs = Pipe()
    memory, metrics = Memory(), Metrics("base")
    loop = counting_loop(memory, metrics, 0)
    loop.start()
    loop.stop(0)
    facts = EngineFacts(
        "counter", "f" * 32, "cpu", "float32", loop.max_context, loop.max_answers, 8
    )
    with ours, theirs:
        for number in range(3):
            ours.send_bytes(pickle.dumps([Call(number, "stats", ())]))
        with pytest.raises(Unavailable, match="the engine's loop has ended"):
            EngineProcess(theirs, loop, memory, metrics).run(facts)
        assert theirs.poll(), "it did not wait until nobody asks any more"


def test_training_stops_before_answers_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, metrics, alive = Memory(), Metrics("base"), []
    loop, worker = counting_loop(memory, metrics, 0.0), Training()
    monkeypatch.setattr(loop, "stop", lambda _seconds: alive.append(worker.alive))
    ours, theirs = Pipe()
    with ours, theirs:
        child = EngineProcess(ours, loop, memory, metrics, worker)
        child._handle(Stop(5.0))
        assert theirs.poll(10)
    assert alive == [False]
