"""An engine's process notices that its loop has ended, whatever else it is asked meanwhile."""

import pickle
from multiprocessing import Pipe

import pytest

from server.errors import Unavailable
from server.metrics import Metrics
from server.replicas.engine_process import EngineProcess
from server.replicas.messages import Call, EngineFacts
from tests.replicas.drill import Memory, counting_loop


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
