"""Who trains in an engine's process, seen from the API's."""

import os
import signal
from multiprocessing import Pipe

import pytest

from server.metrics import Metrics
from server.replicas.engine_process import EngineProcess
from server.replicas.messages import Stop
from server.replicas.replica import WorkerProxy
from tests.api.running import eventually
from tests.replicas.conftest import MakeFleet
from tests.replicas.drill import Memory, Training, counting_loop


def test_it_lives_and_dies_with_its_engine(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    (replica,) = fleet.replicas
    worker = WorkerProxy(replica)
    assert (worker.alive, worker.restarts) == (True, 2)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    assert eventually(lambda: not worker.alive)
    assert eventually(lambda: worker.alive, 30)
    assert worker.restarts == 3


def test_it_is_asked_to_stop_before_answers_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, metrics, told = Memory(), Metrics("base"), []
    loop, worker = counting_loop(memory, metrics, 0.0), Training()
    monkeypatch.setattr(loop, "stop", lambda _seconds: told.append(worker.alive))
    ours, theirs = Pipe()
    with ours, theirs:
        child = EngineProcess(ours, loop, memory, metrics, worker)
        child._handle(Stop(5.0))
        assert theirs.poll(10)
    assert told == [False]
