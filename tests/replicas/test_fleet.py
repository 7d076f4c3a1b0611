"""Engines in processes of their own: the same answers and errors; deaths are told and mended."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from adapters_store.manifest import AdapterRef
from server.engine.sequence import FinishReason
from server.errors import (
    Conflict,
    ContextLengthExceeded,
    InvalidAdapter,
    InvalidRequest,
    QueueFull,
    Unavailable,
    UnsupportedModel,
)
from server.metrics import Metrics
from server.replicas.fleet import Fleet, FleetHandle
from server.replicas.fleet_metrics import add_fleet_metrics
from server.replicas.fleet_residency import FleetResidency
from server.replicas.replica import WorkerProxy
from tests.api.running import eventually
from tests.replicas.conftest import ROOT, MakeFleet, replica
from tests.replicas.drill import LIMITS, Memory, counting_loop
from tests.scheduler.test_loop import Heard, request

CAPACITY = LIMITS.max_rows + LIMITS.max_waiting


def ref(name: str) -> AdapterRef:
    return AdapterRef("owner", name, 1)


def ask(fleet: Fleet, prompt: int = 3, **changes: object) -> tuple[Heard, FleetHandle]:
    heard = Heard(answers=int(str(changes.get("n", 1))))
    return heard, fleet.submit(request(prompt, **changes), heard.listener)


def test_answers_are_those_of_an_engine_in_this_process(make_fleet: MakeFleet) -> None:
    loop = counting_loop(Memory(), Metrics("base"), 0.0)
    loop.start()
    fleet = make_fleet()
    asked: list[dict[str, object]] = [
        {"prompt": 3},
        {"prompt": 5, "max_tokens": 40},
        {"prompt": 4, "n": 3},
        {"prompt": 4, "stop": (" 7",), "max_tokens": 20},
        {"prompt": 6, "prompt_logprobs": True},
        {"prompt": 3, "adapter": ref("pirate")},
    ]
    for one in asked:
        here, there = Heard(answers=int(str(one.get("n", 1)))), ask(fleet, **one)[0]  # type: ignore[arg-type]
        loop.submit(request(**one), here.listener)  # type: ignore[arg-type]
        by_answer = [
            sorted(heard.wait().deltas, key=lambda delta: delta.index) for heard in (here, there)
        ]
        assert by_answer[0] == by_answer[1]
    loop.stop(0)


def test_refusals_keep_their_type(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(pace_s=0.05)
    with pytest.raises(InvalidRequest) as empty:
        fleet.submit(replace(request(), prompt=()), Heard().listener)
    assert empty.value.param == "prompt"
    with pytest.raises(ContextLengthExceeded):
        ask(fleet, max_tokens=1000)
    broken, _ = ask(fleet, adapter=ref("broken"))
    assert isinstance(broken.wait().last.error, InvalidAdapter)
    for _ in range(CAPACITY):
        ask(fleet, max_tokens=200)
    with pytest.raises(QueueFull) as full:
        ask(fleet)
    assert full.value.retry_after_s >= 1


def test_a_cancelled_answer_ends_and_makes_room(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(pace_s=0.05)
    heard, handle = ask(fleet, max_tokens=200)
    assert eventually(lambda: len(heard.deltas) > 2)
    fleet.cancel(handle)
    assert heard.wait().last.finish is FinishReason.CANCELLED
    assert eventually(lambda: fleet.stats().running == 0)
    assert handle.connection.capacity.queued == 0


def test_a_killed_engine_fails_its_answers_and_is_started_again(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(pace_s=0.05)
    residency = FleetResidency(fleet)
    residency.pin(ref("pirate"))
    (only,) = fleet.replicas
    heard, _ = ask(fleet, max_tokens=200)
    assert eventually(lambda: len(heard.deltas) > 2)
    assert only.pid is not None
    os.kill(only.pid, signal.SIGKILL)
    last = heard.wait().last
    assert last.finish is FinishReason.ERROR
    assert isinstance(last.error, Unavailable) and "ended" in str(last.error)
    with pytest.raises(Unavailable):
        ask(fleet)
    assert not fleet.alive
    assert list(residency.snapshot()) == []
    assert eventually(lambda: fleet.alive, 20)
    assert only.restarts == 1
    assert ask(fleet)[0].wait().last.finish is FinishReason.LENGTH
    assert [resident.pinned for resident in residency.snapshot()] == [True]


def test_an_engine_that_is_stopped_is_passed_over_told_and_replaced(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, pace_s=0.05)
    metrics = Metrics("base")
    add_fleet_metrics(metrics, fleet)
    generate_latest(metrics.registry)
    held, handle = ask(fleet, max_tokens=200)
    assert eventually(lambda: len(held.deltas) > 2)
    stopped = next(one for one in fleet.replicas if one.connection is handle.connection)
    pid = stopped.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert b"replica_up" in generate_latest(metrics.registry)
    fleet.stats(), FleetResidency(fleet).snapshot()
    assert time.monotonic() - began < 1, "what is only shown is not waited for"
    assert eventually(lambda: "no progress" in stopped.problem, 10)
    assert fleet.alive, "the other answers"
    for _ in range(CAPACITY):
        _, elsewhere = ask(fleet, max_tokens=10)
        assert elsewhere.connection is not handle.connection
    assert isinstance(held.wait().last.error, Unavailable)
    assert eventually(lambda: stopped.alive, 20)
    assert stopped.restarts == 1
    assert gone(pid), "it may not wake and go on"


def test_who_asks_the_only_engine_while_it_is_stopped_does_not_wait(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    (only,) = fleet.replicas
    assert only.pid is not None
    os.kill(only.pid, signal.SIGSTOP)
    assert eventually(lambda: not fleet.alive, 10)
    with pytest.raises(Unavailable, match="hangs or is being started"):
        ask(fleet)
    assert eventually(lambda: fleet.alive, 20)


def test_an_engine_whose_loop_hangs_while_its_process_lives_is_replaced(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(pace_s="stuck")
    (only,) = fleet.replicas
    heard, _ = ask(fleet, max_tokens=100)
    assert isinstance(heard.wait().last.error, Unavailable)
    assert eventually(lambda: fleet.alive, 20)
    assert only.restarts == 1


def test_a_killed_server_leaves_no_engine() -> None:
    program = (
        "from tests.replicas.conftest import replica\n"
        "one = replica(0, '0.01')\n"
        "one.start(); one.wait()\n"
        "print(one.pid, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()
    assert eventually(lambda: gone(child), 10)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_two_engines_share_the_work_and_keep_their_adapters(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, pace_s=0.05)
    first, second = fleet.connections
    pirates = [ask(fleet, adapter=ref("pirate"), max_tokens=60) for _ in range(3)]
    assert len({handle.connection for _, handle in pirates}) == 1, "an adapter stays where it is"
    butler = ask(fleet, adapter=ref("butler"), max_tokens=60)
    assert butler[1].connection is not pirates[0][1].connection, "others go to the least busy"
    residency = FleetResidency(fleet)
    assert eventually(lambda: residency.loads == 2)
    assert eventually(lambda: fleet.stats().running == 4)
    assert fleet.stats().by_adapter_running == {"pirate@1": 3, "butler@1": 1}
    residency.pin(ref("pirate"))
    for link in (first, second):
        pinned = link.call("snapshot")
        assert isinstance(pinned, list)
        assert ref("pirate") in [one.ref for one in pinned if one.pinned]
    residency.forget(ref("pirate"))
    assert [resident.ref for resident in residency.snapshot()] == [ref("butler")]
    assert all(heard.wait().last.finish is FinishReason.LENGTH for heard, _ in pirates)


def test_while_one_engine_is_down_the_other_answers(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2)
    down, up = fleet.replicas
    assert down.pid is not None
    os.kill(down.pid, signal.SIGKILL)
    assert eventually(lambda: not down.alive)
    for _ in range(3):
        assert ask(fleet)[0].wait().last.finish is FinishReason.LENGTH
    assert up.alive and fleet.alive
    assert eventually(lambda: down.alive, 20)


def test_a_busy_home_is_left(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, pace_s=0.05)
    asked = [ask(fleet, adapter=ref("pirate"), max_tokens=100) for _ in range(CAPACITY + 1)]
    assert len({handle.connection for _, handle in asked}) == 2


def test_a_pin_that_one_engine_refuses_holds_nowhere(make_fleet: MakeFleet) -> None:
    residency = FleetResidency(make_fleet(2))
    with pytest.raises(Conflict, match="no slot"):
        residency.pin(ref("full"))
    assert residency.snapshot() == []


def test_stopping_lets_answers_end(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(pace_s=0.01)
    heard, _ = ask(fleet, max_tokens=40)
    fleet.stop(20)
    assert heard.wait().last.finish is FinishReason.LENGTH
    assert fleet.replicas[0].pid is None
    with pytest.raises(Unavailable):
        ask(fleet)


def test_the_engines_counts_are_added_up(make_fleet: MakeFleet) -> None:
    fleet, metrics = make_fleet(2), Metrics("base")
    metrics.rejected("queue_full")
    add_fleet_metrics(metrics, fleet)
    heard = [ask(fleet, max_tokens=5)[0] for _ in range(4)]
    assert all(one.wait().deltas for one in heard)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"model_name": "base", **labels})

    assert eventually(lambda: value("verandah:generation_tokens_total") == 20)
    assert value("verandah:admission_rejections_total", reason="queue_full") == 1
    assert value("verandah:request_generation_tokens_count") == 4
    assert value("verandah:replica_up", replica="1") == 1
    assert value("verandah:replica_restarts_total", replica="0") == 0


def test_counts_do_not_fall_when_an_engine_is_started_again(make_fleet: MakeFleet) -> None:
    fleet, metrics = make_fleet(2), Metrics("base")
    add_fleet_metrics(metrics, fleet)

    def counts() -> list[float | None]:
        buckets = "verandah:request_generation_tokens_bucket", {"model_name": "base", "le": "8.0"}
        tokens = "verandah:generation_tokens_total", {"model_name": "base"}
        return [metrics.registry.get_sample_value(*it) for it in (tokens, buckets)]

    heard = [ask(fleet, max_tokens=5)[0] for _ in range(4)]
    assert all(one.wait().deltas for one in heard)
    assert eventually(lambda: counts() == [20, 4])
    first, second = fleet.replicas
    for kept in (first, second):
        assert kept.pid is not None
        os.kill(kept.pid, signal.SIGKILL)
    assert eventually(lambda: not first.alive and not second.alive, 10)
    assert counts() == [20, 4]
    assert eventually(lambda: first.alive and second.alive, 20)
    assert counts() == [20, 4]
    ask(fleet, max_tokens=5)[0].wait()
    assert eventually(lambda: counts() == [25, 5])


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [("unfit", UnsupportedModel, "no such model"), ("mute", Unavailable, "ended before")],
)
def test_an_engine_that_cannot_start_says_why(how: str, kind: type[Exception], said: str) -> None:
    one = replica(0, how)
    one.start()
    try:
        with pytest.raises(kind, match=said):
            one.wait()
    finally:
        one.stop(0)


def test_the_worker_lives_and_dies_with_its_engine(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    (replica,) = fleet.replicas
    worker = WorkerProxy(replica)
    assert (worker.alive, worker.restarts) == (True, 2)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    assert eventually(lambda: not worker.alive)
    assert eventually(lambda: worker.alive, 30)
    assert worker.restarts == 3
