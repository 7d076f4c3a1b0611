"""Lists come from the newest, and keep their order while they grow."""

import math

import pytest

from server.errors import InvalidRequest
from server.jobs.queue.training_metrics import TrainingMetrics
from tests.jobs.conftest import Jobs


def test_jobs_page_from_the_newest(jobs: Jobs) -> None:
    ids = [jobs.create().id for _ in range(5)][::-1]
    jobs.create("bob")
    first = jobs.queue.list("ann", limit=2)
    assert ([job.id for job in first.items], first.has_more) == (ids[:2], True)
    jobs.create()  # what comes later does not shift the pages
    second = jobs.queue.list("ann", after=ids[1], limit=3)
    assert ([job.id for job in second.items], second.has_more) == (ids[2:], False)


@pytest.mark.parametrize("after", ["ftjob-none", "\0", ""])
def test_an_unknown_cursor_is_refused(jobs: Jobs, after: str) -> None:
    jobs.create()
    with pytest.raises(InvalidRequest, match="not in this list") as raised:
        jobs.queue.list("ann", after=after)
    assert raised.value.param == "after"


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_a_bad_limit_is_refused(jobs: Jobs, limit: int) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        jobs.queue.list("ann", limit=limit)


def test_events_page_from_the_newest(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    for step in range(4):
        metrics = TrainingMetrics(step, train_loss=math.nan if step == 3 else 0.5)
        jobs.queue.append_event(job, "info", f"Step {step}", metrics)
    page = jobs.queue.events("ann", job.id, limit=2)
    newest, older = page.items
    assert page.has_more
    assert (newest.message, newest.type, newest.data) == (
        "Step 3",
        "metrics",
        {"step": 3, "train_loss": None},
    )
    assert older.data == {"step": 2, "train_loss": 0.5}
    rest = jobs.queue.events("ann", job.id, after=older.id)
    assert [event.message for event in rest.items[:2]] == ["Step 1", "Step 0"]
    assert (rest.items[2].data, rest.has_more) == (None, False)


def test_a_cursor_of_another_job_is_refused(jobs: Jobs) -> None:
    other = jobs.queue.events("ann", jobs.create().id).items[0].id
    with pytest.raises(InvalidRequest, match="not in this list"):
        jobs.queue.events("ann", jobs.create().id, after=other)


def test_checkpoints_page_from_the_newest(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    recorded = [
        jobs.queue.add_checkpoint(
            job, step, f"poet@{step}", TrainingMetrics(step, valid_loss=math.inf)
        )
        for step in (1, 2, 3)
    ]
    made = [checkpoint.id for checkpoint in recorded if checkpoint is not None]
    page = jobs.queue.checkpoints("ann", job.id, limit=2)
    assert ([item.id for item in page.items], page.has_more) == ([made[2], made[1]], True)
    assert page.items[0].metrics.to_document() == {"step": 3, "valid_loss": None}
    (oldest,) = jobs.queue.checkpoints("ann", job.id, after=made[1]).items
    assert oldest.id == made[0]


def test_a_version_is_recorded_once_also_behind_later_ones(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    steps = (1, 2, 1, 2, 3)  # resumed from before its first checkpoint
    recorded = [
        jobs.queue.add_checkpoint(job, step, f"poet@{step}", TrainingMetrics(step))
        for step in steps
    ]
    assert [checkpoint is not None for checkpoint in recorded] == [True, True, False, False, True]
    page = jobs.queue.checkpoints("ann", job.id)
    assert [item.model for item in page.items] == ["poet@3", "poet@2", "poet@1"]
