"""Limits a minute: one bucket, and one shared by several processes."""

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tenancy.limits.gcra import Bucket
from server.tenancy.limits.leases import Lease, LeasedBucket, MemoryStore


def test_a_full_bucket_holds_a_minute_and_refills() -> None:
    bucket = Bucket(60)
    assert [bucket.take(1, 1000.0).allowed for _ in range(61)] == [True] * 60 + [False]
    refused = bucket.take(3, 1000.0)
    assert (refused.limit, refused.remaining) == (60, 0)
    assert refused.reset_s == pytest.approx(60)
    assert refused.retry_after_s == pytest.approx(3)
    assert not bucket.take(3, 1002.9).allowed
    assert bucket.take(3, 1003.01).allowed
    assert bucket.take(61, 9999.0).retry_after_s == math.inf
    assert bucket.take(60, 9999.0).remaining == 0


def test_what_is_not_used_comes_back_and_refusals_are_owed_for_a_while() -> None:
    bucket = Bucket(600)
    assert bucket.take(500, 50.0).remaining == 100
    bucket.exchange(50.0, back=450)
    assert bucket.take(0, 50.0).remaining == 550
    bucket.exchange(50.0, back=9999)
    assert bucket.take(600, 50.0).allowed
    bucket.exchange(50.0, owed=50)
    assert bucket.take(1, 50.0).retry_after_s == pytest.approx(5.1)
    bucket.exchange(50.0, owed=10_000)
    assert bucket.take(1, 50.0).retry_after_s == pytest.approx(10.1)


@given(
    limit=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 1200)), max_size=60),
)
def test_no_more_passes_than_a_bucket_and_its_refill(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    bucket, now, passed = Bucket(limit), 1e6, 0
    for gap, amount in steps:
        now += gap
        verdict = bucket.take(amount, now)
        passed += amount * verdict.allowed
        assert passed <= limit * (1 + (now - 1e6) / 60) + 1e-3
        assert 0 <= verdict.remaining <= limit
        if not verdict.allowed and verdict.retry_after_s < math.inf:
            later = Bucket(limit, bucket.full_at)
            assert later.take(amount, now + verdict.retry_after_s + 1e-3).allowed


@dataclass
class Counted(MemoryStore):
    """Counts the trips; `now` is its clock."""

    now: float = 0.0
    trips: int = 0
    keys: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__(lambda: self.now)

    def exchange(
        self, key: str, limit: int, *, least: float, most: float, back: float, owed: float
    ) -> Lease:
        self.trips += 1
        self.keys.add(key)
        return super().exchange(key, limit, least=least, most=most, back=back, owed=owed)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("load", [0.5, 1.5, 6.0])
@pytest.mark.parametrize("limit", [200, 60_000])
def test_eight_processes_hold_one_limit(limit: int, load: float, seed: int) -> None:
    """One of them dies with what it holds. What passes in three minutes beyond the first full
    bucket, against one bucket that all ask."""
    rng, store, one = random.Random(seed), Counted(), Bucket(limit)
    processes = [LeasedBucket(store, "o", limit, 0.0) for _ in range(8)]
    busy = [rng.random() ** 2 for _ in processes]
    passed = {"shared": 0, "one": 0}
    ends: list[tuple[float, LeasedBucket, int, int]] = []
    asked = 0
    while store.now < 180.0:
        mean = max(limit / 60 / 40, 1.2)
        store.now += rng.expovariate(limit / 60 / mean * load)
        for end in [it for it in ends if it[0] <= store.now]:
            ends.remove(end)
            end[1].settle(end[2], end[3])
        process = rng.choices(processes, busy)[0]
        used = max(int(rng.uniform(0.2, 1.8) * mean), 1)
        reserved = used + rng.choice([0, 0, used])
        asked += 1
        if one.take(reserved, store.now).allowed:
            passed["one"] += used
            one.exchange(store.now, back=reserved - used)
        if process.take(reserved, store.now).allowed:
            passed["shared"] += used
            ends.append((store.now + 0.05, process, reserved, used))
        if asked % 50 == 0:
            for each in processes:
                each.tidy(store.now)
        if asked == 400:
            processes[0] = LeasedBucket(store, "o", limit, store.now)
    assert 0.95 <= passed["shared"] / passed["one"] <= 1.05
    assert passed["shared"] <= 4 * limit * 1.0001
    assert store.trips < 2.1 * asked


def test_a_high_limit_costs_few_trips_and_a_known_refusal_none() -> None:
    store = Counted()
    bucket = LeasedBucket(store, "o", 6000, 0.0)
    assert all(bucket.take(1, 0.0).allowed for _ in range(3000))
    assert store.trips <= 110
    while bucket.take(1, 0.0).allowed:
        pass
    before = store.trips
    assert not any(bucket.take(1, 0.001).allowed for _ in range(1000))
    assert store.trips <= before + 1


def test_an_idle_process_gives_back_what_it_holds() -> None:
    store = Counted()
    busy, idle = (LeasedBucket(store, "o", 60_000, 0.0) for _ in range(2))
    assert idle.take(10, 0.0).allowed
    assert busy.take(59_990, 0.0).allowed is False
    store.now = 3.0
    idle.tidy(store.now)
    assert busy.take(60_000, store.now).allowed
