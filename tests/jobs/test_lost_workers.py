"""Workers that are known to be dead, jobs that may be what killed them, and clocks that jump."""

import pytest
from sqlalchemy import inspect, select

from server.db.tables import JobRow
from server.errors import LeaseLost
from server.jobs.queue.job import Job
from server.jobs.queue.transitions import MAX_LOST_LEASES, SUSPECT_LOST_LEASES
from tests.jobs.conftest import Jobs


def test_what_a_dead_worker_held_is_claimed_at_once(jobs: Jobs) -> None:
    mine, other = jobs.create(), jobs.create("bob")
    jobs.claim("dead")
    jobs.claim("alive")
    jobs.queue.abandon("dead", "died")
    assert jobs.claim("new").id == mine.id
    assert jobs.queue.claim("new", 30) is None
    assert jobs.queue.get("bob", other.id).worker == "alive"


def test_a_job_tells_how_its_worker_was_lost(jobs: Jobs) -> None:
    job = jobs.create()
    jobs.claim("hung")
    jobs.queue.abandon("hung", "hung: it made no progress for 20 s, and was killed")
    jobs.claim("far")
    jobs.clock.now += 31  # of a lease of 30 s: nobody knows more
    jobs.claim("new")
    warnings = [event.message for event in jobs.queue.events("ann", job.id).items[::-1]]
    assert [line for line in warnings if line.startswith("The worker ")] == [
        "The worker hung: it made no progress for 20 s, and was killed. "
        "Another continues the job from its last checkpoint",
        "The worker sent no heartbeat for 30 s. Another continues the job from its last checkpoint",
    ]


def test_to_be_called_dead_costs_a_worker_nothing_until_its_job_is_taken(jobs: Jobs) -> None:
    jobs.create()
    held = jobs.claim("alive")
    jobs.queue.abandon("alive", "died")
    jobs.queue.heartbeat(held)
    assert jobs.queue.claim("new", 30) is None
    jobs.queue.abandon("alive", "died")
    jobs.claim("new")
    with pytest.raises(LeaseLost):
        jobs.queue.finish(held, "poet@1", 1)


def test_a_job_that_kills_at_once_fails_without_waiting_for_leases(jobs: Jobs) -> None:
    created = jobs.create()
    for attempt in range(MAX_LOST_LEASES + 1):
        jobs.claim(f"w{attempt}")
        jobs.queue.abandon(f"w{attempt}", "died")
    assert jobs.queue.claim("last", 30) is None
    job = jobs.queue.get("ann", created.id)
    assert job.error is not None
    assert job.error.code == "worker_lost"


def test_a_job_that_may_kill_its_worker_is_for_one_that_has_no_other(jobs: Jobs) -> None:
    suspect, waiting = jobs.create(), jobs.create("bob")
    for attempt in range(SUSPECT_LOST_LEASES + 1):
        assert jobs.claim(f"w{attempt}").id == suspect.id
        jobs.queue.abandon(f"w{attempt}", "died")
    assert jobs.queue.claim("busy", 30, busy=True) is None
    assert jobs.claim("idle").id == suspect.id
    assert jobs.claim("busy").id == waiting.id


def test_a_busy_worker_does_not_take_over_its_own_jobs(jobs: Jobs) -> None:
    created = jobs.create()
    held = jobs.claim("w1")
    jobs.clock.now += 3600
    assert jobs.queue.claim("w1", 30, busy=True) is None
    jobs.queue.heartbeat(held)
    assert jobs.queue.claim("w2", 30) is None
    assert jobs.queue.get("ann", created.id).attempt == 1


def test_a_worker_of_the_same_name_takes_over_what_its_forerunner_held(jobs: Jobs) -> None:
    """In a container every worker may be the process of the same number."""
    jobs.create()
    jobs.claim("w1")
    jobs.clock.now += 31
    assert jobs.claim("w1").attempt == 2


def test_who_started_while_the_clock_was_ahead_is_not_the_last_for_as_long(jobs: Jobs) -> None:
    jobs.clock.now += 3600
    for _ in range(3):
        jobs.create("ann")
    jobs.queue.finish(jobs.claim(), "m@1", 1)
    jobs.clock.now -= 3600
    for _ in range(9):
        jobs.create("bob")
    order = []
    for _ in range(4):
        jobs.clock.now += 1
        job = jobs.claim()
        order.append(job.owner)
        jobs.queue.finish(job, "m@1", 1)
    assert sorted(order[:2]) == sorted(order[2:]) == ["ann", "bob"]


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_and_comes_back_leaves_no_job_waiting(jobs: Jobs, jump: float) -> None:
    """Not longer than a lease and the second of slack, once the clock is right again."""
    created = [jobs.create(), jobs.create("bob")]
    jobs.claim("dies before")
    jobs.clock.now += jump
    jobs.claim("dies meanwhile")
    jobs.clock.now -= jump
    jobs.queue.claim("looks in between", 30)
    jobs.clock.now += 32
    assert {jobs.claim().id, jobs.claim().id} == {job.id for job in created}


@pytest.mark.parametrize("workers", [1, 4])
def test_a_thousand_jobs_starve_nobody(jobs: Jobs, workers: int) -> None:
    """Two who come later, with a job each, are served as soon as any worker is free."""
    _copy(jobs, jobs.create("ann"), 999)
    held = [jobs.claim(f"w{i}") for i in range(workers)]
    small = [jobs.create(owner) for owner in ("bob", "cat")]
    order = []
    for _ in range(3):
        jobs.queue.finish(held.pop(0), "m@1", 1)
        jobs.clock.now += 1
        held.append(jobs.claim())
        order.append(held[-1])
    assert [job.id for job in order[:2]] == [job.id for job in small]
    assert order[2].owner == "ann"


def _copy(jobs: Jobs, job: Job, times: int) -> None:
    with jobs.database.transaction() as session:
        row = session.scalars(select(JobRow).where(JobRow.id == job.id)).one()
        values = {c.key: getattr(row, c.key) for c in inspect(JobRow).column_attrs}
        del values["number"]
        session.add_all(JobRow(**{**values, "id": f"{job.id}-{i}"}) for i in range(times))


def test_a_worker_that_only_looks_sees_what_a_claim_would_take(jobs: Jobs) -> None:
    assert not jobs.queue.has_claimable()
    job = jobs.create()
    assert jobs.queue.has_claimable()
    jobs.claim(lease_s=30)
    assert not jobs.queue.has_claimable()
    jobs.clock.now += 31
    assert jobs.queue.has_claimable(), "the lease is over"
    jobs.clock.now -= 1000
    assert jobs.queue.has_claimable(), "the clock was set back: a claim shortens such a lease"
    jobs.clock.now += 1000
    again = jobs.claim(lease_s=30)
    jobs.queue.pause(job.owner, job.id)
    jobs.queue.park(again)
    assert not jobs.queue.has_claimable(), "a paused job waits for its owner"
    jobs.queue.resume(job.owner, job.id)
    assert jobs.queue.has_claimable()
    jobs.queue.cancel(job.owner, job.id)
    assert not jobs.queue.has_claimable()
