"""Pausing and resuming, whoever has the job at the time; and finding jobs by what they are."""

import pytest

from server.errors import Conflict, LeaseLost, NotFound
from server.jobs.queue.job import Job, JobStatus
from server.jobs.queue.job_estimate import JobEstimate
from tests.jobs.conftest import Jobs

ESTIMATE = JobEstimate(
    examples=12,
    counted=12,
    tokens=300,
    longest=40,
    n_epochs=3,
    batch_size=4,
    steps=9,
    trained_tokens=900,
    seconds=7,
    measured=True,
    parameters=100,
    adapter_bytes=2048,
    warnings=("line 3 repeats line 2",),
)


def test_a_waiting_job_pauses_and_goes_on(jobs: Jobs) -> None:
    job = jobs.create()
    assert jobs.queue.pause("ann", job.id).status == JobStatus.PAUSED
    assert jobs.queue.pause("ann", job.id).status == JobStatus.PAUSED
    assert jobs.queue.claim("w", 30) is None
    assert jobs.queue.unfinished() == {job.id}
    assert jobs.queue.resume("ann", job.id).status == JobStatus.QUEUED
    assert jobs.claim().id == job.id
    with pytest.raises(Conflict, match="is running; only a paused job"):
        jobs.queue.resume("ann", job.id)


@pytest.mark.parametrize("how", ["finish", "stop"])
def test_what_has_ended_before_it_paused_is_not_resumed(jobs: Jobs, how: str) -> None:
    jobs.create()
    job = jobs.claim()
    jobs.queue.pause("ann", job.id)
    if how == "stop":
        jobs.queue.cancel("ann", job.id)
        jobs.queue.stop(job)
    else:
        jobs.queue.finish(job, "poet@1", 1)
    with pytest.raises(Conflict, match="only a paused job"):
        jobs.queue.resume("ann", job.id)


def test_a_running_job_pauses_once_its_worker_has_saved_it(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    asked = jobs.queue.pause("ann", job.id)
    assert (asked.status, asked.stop_request) == (JobStatus.RUNNING, "pause")
    assert jobs.queue.heartbeat(job) == "pause"
    parked = jobs.queue.park(job)
    assert (parked.status, parked.stop_request, parked.worker) == (JobStatus.PAUSED, None, None)
    with pytest.raises(LeaseLost):
        jobs.queue.heartbeat(job)
    jobs.queue.resume("ann", job.id)
    assert jobs.claim().attempt == 2
    assert jobs.messages(job)[-4:-1] == [
        "Pausing: the worker was asked to save the job",
        "The job is paused; resume it to continue",
        "The job was resumed",
    ]


def test_a_pause_that_was_taken_back_costs_nothing(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    jobs.queue.pause("ann", job.id)
    assert jobs.queue.resume("ann", job.id).status == JobStatus.RUNNING
    assert jobs.queue.heartbeat(job) is None
    assert jobs.queue.park(job).status == JobStatus.QUEUED  # it had heard of it already


def test_a_pause_outlives_the_worker(jobs: Jobs) -> None:
    jobs.create()
    shut_down, lost, late = jobs.claim(), *(_claimed(jobs) for _ in range(2))
    jobs.queue.pause("ann", shut_down.id)
    jobs.queue.release(shut_down)
    jobs.queue.pause("ann", lost.id)
    jobs.clock.now += 100
    assert jobs.queue.pause("ann", late.id).status == JobStatus.PAUSED
    assert jobs.queue.claim("another", 30) is None
    for job in (shut_down, lost, late):
        assert jobs.queue.get("ann", job.id).status == JobStatus.PAUSED


def _claimed(jobs: Jobs) -> Job:
    jobs.create()
    return jobs.claim()


def test_cancelling_comes_before_pausing(jobs: Jobs) -> None:
    first = jobs.create()
    jobs.queue.pause("ann", first.id)
    with pytest.raises(Conflict, match="still needs file"):
        jobs.files.delete("ann", jobs.file())
    assert jobs.queue.cancel("ann", first.id).status == JobStatus.CANCELLED
    for change in (jobs.queue.pause, jobs.queue.resume):
        with pytest.raises(Conflict):
            change("ann", first.id)
        with pytest.raises(NotFound):
            change("bob", first.id)
    jobs.create()
    job = jobs.claim()
    jobs.queue.pause("ann", job.id)
    jobs.queue.cancel("ann", job.id)
    assert jobs.queue.heartbeat(job) == "cancel"
    with pytest.raises(Conflict, match="is being cancelled"):
        jobs.queue.pause("ann", job.id)
    jobs.queue.stop(job)


ODD = {'a"b': "x", "é": "", "a.b": "y"}


def test_jobs_are_found_by_metadata_and_status(jobs: Jobs) -> None:
    plain = jobs.create()
    odd = jobs.create(metadata=ODD)
    both = jobs.create(metadata=ODD | {"team": "red"})
    jobs.queue.cancel("ann", both.id)
    jobs.create("bob", metadata=ODD)

    def found(**filters: object) -> list[str]:
        return [job.id for job in jobs.queue.list("ann", **filters).items]  # type: ignore[arg-type]

    for key, value in ODD.items():
        assert found(metadata={key: value}) == [both.id, odd.id]
    assert found(metadata=ODD | {"team": "red"}) == [both.id]
    assert found(metadata={"team": ""}) == found(metadata={"x": "red"}) == []
    assert found(metadata={}) == [plain.id]
    assert found(status=JobStatus.QUEUED) == [odd.id, plain.id]
    assert found(status=JobStatus.CANCELLED, metadata={"team": "red"}) == [both.id]


def test_an_estimate_is_kept_and_told(jobs: Jobs) -> None:
    job = jobs.create(estimate=ESTIMATE)
    assert jobs.queue.get("ann", job.id).estimate == ESTIMATE
    told = jobs.messages(job)
    assert told[1] == "line 3 repeats line 2"
    assert "9 steps, 900 trained tokens; about 7 seconds" in told[2]
    assert "an adapter of 2 KiB" in told[2]


def test_how_fast_jobs_were(jobs: Jobs) -> None:
    assert jobs.queue.speed() is None
    for tokens in (100, 300):
        jobs.create()
        job = jobs.claim()
        jobs.clock.now += 10
        jobs.queue.add_results(job, "file-1")
        assert jobs.queue.finish(job, "m@1", tokens).result_file == "file-1"
    assert jobs.queue.speed() == 20.0


def test_events_may_come_oldest_first(jobs: Jobs) -> None:
    job = jobs.create()
    page = jobs.queue.events("ann", job.id, limit=1, newest_first=False)
    (first,) = page.items
    assert (first.message, page.has_more) == (f"Created fine-tuning job: {job.id}", True)
    rest = jobs.queue.events("ann", job.id, after=first.id, newest_first=False)
    assert len(rest.items) == 1 and not rest.has_more
