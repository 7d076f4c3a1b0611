"""A job's life: queued, claimed once, kept, taken over, ended once."""

from typing import Any

import pytest
from sqlalchemy import select

from server.db.tenancy_tables import UsageRow
from server.errors import Conflict, InvalidRequest, LeaseLost, NotFound
from server.jobs.queue.job import JobError, JobStatus
from server.jobs.queue.train_options import TrainOptions
from server.jobs.queue.training_metrics import TrainingMetrics
from server.jobs.queue.transitions import MAX_LOST_LEASES
from tests.jobs.conftest import Jobs


def test_a_job_is_created_as_asked(jobs: Jobs) -> None:
    options = TrainOptions(rank=16, targets=("q_proj",))
    job = jobs.create(
        suffix="poet",
        seed=7,
        hyperparameters=options,
        metadata={"team": "é"},
        validation_file=jobs.file(),
    )
    assert jobs.queue.get("ann", job.id) == job
    assert (job.status, job.suffix, job.seed, job.hyperparameters, job.metadata) == (
        JobStatus.QUEUED,
        "poet",
        7,
        options,
        {"team": "é"},
    )
    assert job.training_file == job.validation_file == jobs.file()
    assert (job.created_at, job.started_at, job.finished_at) == (1_000_000, None, None)
    assert (job.fine_tuned_model, job.trained_tokens, job.error) == (None, None, None)


def test_a_seed_is_asked_for_given_or_made(jobs: Jobs) -> None:
    assert jobs.create(hyperparameters=TrainOptions(seed=5)).seed == 5
    assert jobs.create(hyperparameters=TrainOptions(seed=5), seed=2**63 - 1).seed == 2**63 - 1
    assert len({jobs.create().seed for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("suffix", "../x"),
        ("suffix", "x" * 65),
        ("seed", -1),
        ("metadata", {str(i): "" for i in range(17)}),
        ("metadata", {"k" * 65: ""}),
        ("metadata", {"k\x1b": ""}),
        ("metadata", {"k": "v" * 513}),
        ("validation_file", "file-none"),
        ("validation_file", "file-\0"),
    ],
)
def test_a_bad_field_is_named(jobs: Jobs, param: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        jobs.create(**{param: value})
    assert raised.value.param == param
    assert jobs.queue.list("ann").items == ()


def test_a_job_needs_a_file_of_its_owner(jobs: Jobs) -> None:
    theirs = jobs.file("bob")
    with pytest.raises(InvalidRequest, match="no file") as raised:
        jobs.queue.create("ann", "base", theirs)
    assert raised.value.param == "training_file"


def test_owners_are_apart(jobs: Jobs) -> None:
    job = jobs.create("ann")
    for act in (jobs.queue.get, jobs.queue.cancel, jobs.queue.events, jobs.queue.checkpoints):
        with pytest.raises(NotFound, match=job.id):
            act("bob", job.id)
    assert jobs.queue.list("bob").items == ()


def test_a_job_runs_to_its_end(jobs: Jobs) -> None:
    created = jobs.create()
    job = jobs.claim()
    assert (job.id, job.status, job.attempt, job.worker) == (
        created.id,
        JobStatus.RUNNING,
        1,
        "w1",
    )
    assert job.started_at == 1_000_000
    assert jobs.queue.claim("w2", 30.0) is None
    assert not jobs.queue.heartbeat(job, step=3, estimated_finish=1_000_060, trained_tokens=9)
    seen = jobs.queue.get("ann", job.id)
    assert (seen.step, seen.estimated_finish, seen.trained_tokens) == (3, 1_000_060, 9)
    jobs.clock.now += 5
    ended = jobs.queue.finish(job, "poet@1", 12)
    assert jobs.queue.get("ann", job.id) == ended
    assert (ended.status, ended.fine_tuned_model, ended.trained_tokens) == (
        JobStatus.SUCCEEDED,
        "poet@1",
        12,
    )
    assert (ended.finished_at, ended.estimated_finish, ended.worker) == (1_000_005, None, None)
    assert jobs.messages(job) == [
        f"Created fine-tuning job: {job.id}",
        "Files validated; the job waits for a worker",
        "Fine-tuning job started",
        "New fine-tuned model created: poet@1",
        "The job has successfully completed",
    ]


def test_a_job_may_fail(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    ended = jobs.queue.fail(job, "diverged", "the loss is NaN\0", "learning_rate")
    assert ended.status == JobStatus.FAILED
    assert ended.error == JobError("diverged", "the loss is NaN", "learning_rate")
    assert jobs.queue.get("ann", job.id) == ended
    assert jobs.queue.events("ann", job.id).items[0].level == "error"


def test_a_job_ends_once(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    jobs.queue.finish(job, "poet@1", 1)
    before = jobs.queue.get("ann", job.id), jobs.messages(job)
    for speak in (
        lambda: jobs.queue.finish(job, "poet@2", 2),
        lambda: jobs.queue.fail(job, "x", "y"),
        lambda: jobs.queue.stop(job),
        lambda: jobs.queue.release(job),
        lambda: jobs.queue.heartbeat(job),
        lambda: jobs.queue.append_event(job, "info", "late"),
        lambda: jobs.queue.add_checkpoint(job, 1, "poet@2", TrainingMetrics(1)),
    ):
        with pytest.raises(LeaseLost, match="succeeded"):
            speak()
    with pytest.raises(Conflict, match="already succeeded"):
        jobs.queue.cancel("ann", job.id)
    assert (jobs.queue.get("ann", job.id), jobs.messages(job)) == before


def test_a_lost_job_is_taken_over_and_its_old_worker_fenced(jobs: Jobs) -> None:
    jobs.create()
    old = jobs.claim("w1", lease_s=30)
    jobs.clock.now += 29
    assert jobs.queue.claim("w2", 30) is None
    jobs.queue.heartbeat(old)
    jobs.clock.now += 29
    assert jobs.queue.claim("w2", 30) is None
    jobs.clock.now += 2
    new = jobs.claim("w2")
    assert (new.id, new.attempt, new.worker) == (old.id, 2, "w2")
    assert new.started_at == old.started_at
    for speak in (
        lambda: jobs.queue.finish(old, "poet@1", 1),
        lambda: jobs.queue.fail(old, "x", "y"),
        lambda: jobs.queue.heartbeat(old),
        lambda: jobs.queue.append_event(old, "info", "I live"),
        lambda: jobs.queue.add_checkpoint(old, 1, "m", TrainingMetrics(1)),
    ):
        with pytest.raises(LeaseLost, match="attempt 2"):
            speak()
    assert jobs.queue.finish(new, "poet@1", 1).status == JobStatus.SUCCEEDED
    assert "Fine-tuning job started, attempt 2" in jobs.messages(new)


def test_a_late_worker_keeps_a_job_that_nobody_took(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim(lease_s=1)
    jobs.clock.now += 100
    jobs.queue.heartbeat(job)
    assert jobs.queue.claim("w2", 1) is None


def test_a_worker_that_shuts_down_gives_its_job_back(jobs: Jobs) -> None:
    jobs.create()
    first = jobs.claim()
    jobs.queue.release(first)
    assert jobs.queue.get("ann", first.id).status == JobStatus.QUEUED
    assert jobs.claim("w2").attempt == 2
    with pytest.raises(LeaseLost):
        jobs.queue.heartbeat(first)


def test_a_job_that_kills_its_workers_fails_in_the_end(jobs: Jobs) -> None:
    created = jobs.create()
    for _ in range(MAX_LOST_LEASES + 1):
        jobs.queue.heartbeat(jobs.claim(), step=4)
        jobs.clock.now += 31
    assert jobs.queue.claim("w1", 30) is None
    job = jobs.queue.get("ann", created.id)
    assert job.status == JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert "without getting past step 4" in job.error.message


def test_a_job_that_gets_further_may_lose_many_workers(jobs: Jobs) -> None:
    jobs.create()
    for step in range(1, 4 * MAX_LOST_LEASES):
        jobs.queue.heartbeat(jobs.claim(), step=step)
        jobs.clock.now += 31
    assert jobs.claim().attempt == 4 * MAX_LOST_LEASES


def test_a_waiting_job_is_cancelled_at_once(jobs: Jobs) -> None:
    job = jobs.queue.cancel("ann", jobs.create().id)
    assert (job.status, job.finished_at) == (JobStatus.CANCELLED, 1_000_000)
    assert jobs.queue.claim("w1", 30) is None
    with pytest.raises(Conflict, match="already cancelled"):
        jobs.queue.cancel("ann", job.id)


def test_a_running_job_is_cancelled_by_its_worker(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    for _ in range(2):
        asked = jobs.queue.cancel("ann", job.id)
        assert (asked.status, asked.cancel_requested) == (JobStatus.RUNNING, True)
    assert jobs.queue.heartbeat(job) == "cancel"
    assert jobs.queue.stop(job).status == JobStatus.CANCELLED
    assert jobs.messages(job)[-2:] == [
        "Cancelling: the worker was asked to stop",
        "The job was cancelled",
    ]


def test_a_job_that_finishes_before_it_obeys_has_succeeded(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    jobs.queue.cancel("ann", job.id)
    assert jobs.queue.finish(job, "poet@1", 1).status == JobStatus.SUCCEEDED


@pytest.mark.parametrize("how", ["claim", "cancel", "release"])
def test_a_cancelled_job_without_a_worker_ends(jobs: Jobs, how: str) -> None:
    jobs.create()
    job = jobs.claim()
    if how == "cancel":
        jobs.clock.now += 31
        jobs.queue.cancel("ann", job.id)
    else:
        jobs.queue.cancel("ann", job.id)
        if how == "release":
            jobs.queue.release(job)
        jobs.clock.now += 31
        assert jobs.queue.claim("w2", 30) is None
    assert jobs.queue.get("ann", job.id).status == JobStatus.CANCELLED


def test_a_clock_set_back_costs_one_lease(jobs: Jobs) -> None:
    jobs.create()
    old = jobs.claim(lease_s=30)
    jobs.clock.now -= 100_000
    assert jobs.queue.claim("w2", 30) is None
    jobs.queue.heartbeat(old)  # the living keep their jobs
    jobs.clock.now += 29
    assert jobs.queue.claim("w2", 30) is None
    jobs.clock.now += 2
    assert jobs.claim("w2").attempt == 2


def test_a_clock_that_jumps_ahead_costs_no_correctness(jobs: Jobs) -> None:
    jobs.create()
    old = jobs.claim(lease_s=30)
    jobs.clock.now += 100_000
    new = jobs.claim("w2")
    with pytest.raises(LeaseLost):
        jobs.queue.finish(old, "poet@1", 1)
    assert jobs.queue.finish(new, "poet@1", 1).status == JobStatus.SUCCEEDED


def test_owners_take_turns(jobs: Jobs) -> None:
    for _ in range(4):
        jobs.create("ann")
    for _ in range(2):
        jobs.create("bob")
    jobs.create("cat")
    order = []
    for _ in range(7):  # one worker: whoever started longest ago is next
        jobs.clock.now += 1
        job = jobs.claim()
        order.append(job.owner)
        jobs.queue.finish(job, "m@1", 1)
    assert order == ["ann", "bob", "cat", "ann", "bob", "ann", "ann"]


def test_the_owner_with_the_fewest_running_is_next(jobs: Jobs) -> None:
    for owner in ("ann", "ann", "ann", "bob", "bob"):
        jobs.create(owner)
    claimed = [jobs.claim(f"w{i}") for i in range(3)]
    assert [job.owner for job in claimed] == ["ann", "bob", "ann"]
    jobs.queue.finish(claimed[1], "m@1", 1)
    assert jobs.claim("w4").owner == "bob"


def test_a_lost_job_comes_first(jobs: Jobs) -> None:
    lost = jobs.create("ann")
    jobs.claim(lease_s=1)
    for owner in ("bob", "cat"):
        jobs.create(owner)
    jobs.clock.now += 2
    assert jobs.claim().id == lost.id


def test_counts_are_of_all_owners(jobs: Jobs) -> None:
    for owner in ("ann", "bob", "bob"):
        jobs.create(owner)
    jobs.claim()
    counts = jobs.queue.counts()
    assert (counts[JobStatus.QUEUED], counts[JobStatus.RUNNING]) == (2, 1)
    assert counts.keys() == set(JobStatus)


def test_trained_tokens_count_once_for_the_owner(jobs: Jobs) -> None:
    job = jobs.create(suffix="pirate")
    claimed = jobs.claim()
    jobs.queue.heartbeat(claimed, trained_tokens=100)
    jobs.queue.heartbeat(claimed, trained_tokens=60)  # it went back to a checkpoint
    assert jobs.queue.get("ann", job.id).trained_tokens == 100
    jobs.queue.heartbeat(claimed, trained_tokens=130)
    jobs.queue.finish(claimed, "pirate@1", 150)
    with jobs.database.reading() as session:
        rows = session.scalars(select(UsageRow)).all()
    assert [(it.owner, it.model, it.training) for it in rows] == [("ann", "pirate", 150)]
