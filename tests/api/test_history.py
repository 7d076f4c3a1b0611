"""The last minutes of a server, by a clock that tests set."""

import threading

import pytest

from server.api import history
from server.api.history import MOST_MOMENTS, MOST_OWNERS, History, keeping_history
from server.db.audit_trail import Actor
from server.scheduler.request import DeviceMemory, LoopStats
from server.tenancy.usage.usage_counts import UsageCounts
from tests.api.fakes import FakeLoop
from tests.api.running import eventually

ANN, BOB = (Actor(owner, f"key_{owner}", None, owner) for owner in ("ann", "bob"))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told(clock: Clock) -> History:
    return History(clock)


def test_rates_are_by_the_time_that_really_passed(told: History, clock: Clock) -> None:
    assert told.rate(None, "requests") == 0.0 and told.rates(None, "requests") == []
    assert told.latest is None
    clock.now += 2
    told.add({"ann": {"requests": 4, "prompt": 10}, "bob": {"requests": 2}}, LoopStats(running=1))
    clock.now += 4  # the thread came late
    told.add({"ann": {"requests": 4, "completion": 8}}, LoopStats(running=3))
    assert told.rates(None, "requests") == [3.0, 1.0]
    assert told.rates("ann", "requests") == [2.0, 1.0]
    assert told.rates("ann", "prompt", "completion") == [5.0, 2.0]
    assert told.rates("nobody", "requests") == [0.0, 0.0]
    assert told.rate(None, "requests") == pytest.approx(10 / 6)
    assert told.stats(lambda it: it.running) == [1, 3]
    assert told.latest == LoopStats(running=3)


def test_the_rate_now_forgets_what_is_ten_seconds_old(told: History, clock: Clock) -> None:
    for requests in (100, 1, 1, 1, 1, 1):
        clock.now += 2
        told.add({"ann": {"requests": requests}}, LoopStats())
    assert told.rate(None, "requests") == 0.5
    assert told.in_last(60, "ann", "requests") == 105
    assert told.in_last(4, "ann", "requests") == 2
    clock.now += 60
    assert told.in_last(60, "ann", "requests") == 0


def test_moments_and_their_owners_are_bounded(told: History, clock: Clock) -> None:
    owners = {f"o{n}": {"requests": n} for n in range(MOST_OWNERS + 50)}
    for _ in range(MOST_MOMENTS + 30):
        clock.now += 2
        told.add(owners, LoopStats())
    rates = told.rates(None, "requests")
    assert len(rates) == MOST_MOMENTS
    assert rates[-1] == sum(range(MOST_OWNERS + 50)) / 2, "the sum counts those without a name too"
    assert told.rate(f"o{MOST_OWNERS + 49}", "requests") > 0
    assert told.rate("o1", "requests") == 0, "the least busy have no name"
    assert all(len(moment.owners) == MOST_OWNERS for moment in told._moments)


def test_it_is_kept_while_the_context_lasts(told: History) -> None:
    usage, engine = UsageCounts(), FakeLoop()
    before = threading.active_count()
    with keeping_history(told, usage, engine, every_s=0.01):
        usage.end(usage.begin(ANN, "base", 7))
        usage.refused(BOB)
        assert eventually(lambda: told.in_last(60, None, "refusals") == 1)
        assert told.in_last(60, "ann", "prompt") == 7
        assert told.latest == engine.stats()
    assert threading.active_count() == before
    seen = len(told.rates(None, "requests"))
    usage.end(usage.begin(ANN, "base", 7))
    assert len(told.rates(None, "requests")) == seen


def test_an_engine_that_does_not_answer_loses_no_usage(told: History) -> None:
    usage, engine = UsageCounts(), FakeLoop()
    calls = []

    def stats() -> LoopStats:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("the device is lost")
        return LoopStats()

    engine.stats = stats  # type: ignore[method-assign]
    usage.end(usage.begin(ANN, "base", 7))
    with keeping_history(told, usage, engine, every_s=0.01):
        assert eventually(lambda: told.in_last(60, "ann", "prompt") == 7)


def test_what_is_written_to_the_database_is_in_it_too() -> None:
    """Two read the same counts, each all of them."""
    usage = UsageCounts()
    usage.end(usage.begin(ANN, "base", 7))
    assert sum(it["prompt"] for it in usage.take().values()) == 7
    assert usage.lately()["ann"]["prompt"] == 7
    usage.end(usage.begin(ANN, "base", 5))
    assert usage.lately()["ann"]["prompt"] == 5
    assert usage.lately() == {}
    assert sum(it["prompt"] for it in usage.take().values()) == 5


def test_memory_of_several_engines_is_added_up() -> None:
    one = DeviceMemory(("H200",), 1, 2, 3, 4, 10, 5)
    assert one + one == DeviceMemory(("H200", "H200"), 2, 4, 6, 8, 20, 10)
    assert sum([one], DeviceMemory()) == one


def test_four_minutes_are_kept() -> None:
    assert history.EVERY_S * MOST_MOMENTS == 240
