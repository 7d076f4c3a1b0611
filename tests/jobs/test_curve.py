"""A curve has every step once, or a part of them that hides nothing of note."""

import math
from itertools import pairwise

import pytest

from server.errors import NotFound
from server.jobs.queue.job import Job
from server.jobs.queue.training_metrics import TrainingMetrics
from tests.jobs.conftest import Jobs


def report(jobs: Jobs, job: Job, losses: dict[int, float], scores: dict[int, float]) -> None:
    for step in sorted(losses.keys() | scores.keys()):
        figures = TrainingMetrics(step, train_loss=losses.get(step), valid_loss=scores.get(step))
        jobs.queue.append_event(job, "info", f"Step {step}", figures)


def test_a_short_curve_is_whole(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    report(jobs, job, {1: 2.0, 2: math.nan}, {0: 3.0, 2: 1.0})
    curve = jobs.queue.curve("ann", job.id, 10)
    assert curve.reported == 3
    assert curve.points == (
        {"step": 0, "valid_loss": 3.0},
        {"step": 1, "train_loss": 2.0},
        {"step": 2, "train_loss": None, "valid_loss": 1.0},
    )
    assert jobs.queue.newest_metrics([job, jobs.create()]) == {job.id: curve.points[-1]}


def test_a_long_curve_keeps_its_peaks_its_scores_and_its_end(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    losses = {step: 2.0 + step % 7 / 100 for step in range(1, 301)} | {77: 9.0, 200: 0.1}
    losses |= {step: math.nan for step in range(240, 260)}
    report(jobs, job, losses, {0: 3.0, 123: 1.5, 181: math.inf})
    other = jobs.create("bob")
    claimed = jobs.claim()
    assert claimed.id == other.id
    report(jobs, claimed, {1: 5.0}, {})
    curve = jobs.queue.curve("ann", job.id, 40)
    steps = [point["step"] for point in curve.points]
    assert steps == sorted(set(steps))
    assert {0, 77, 123, 200, 300} <= set(steps)
    assert 30 <= len(steps) <= 45
    assert curve.reported == 301
    assert max(b - a for a, b in pairwise(steps)) <= 2 * 16


@pytest.mark.parametrize("owner", ["bob", "ann"])
def test_a_curve_is_the_owners(jobs: Jobs, owner: str) -> None:
    job = jobs.create("ann" if owner == "bob" else "bob")
    with pytest.raises(NotFound):
        jobs.queue.curve(owner, job.id, 10)


def test_events_of_one_kind(jobs: Jobs) -> None:
    jobs.create()
    job = jobs.claim()
    report(jobs, job, {1: 2.0, 2: 1.0}, {})
    page = jobs.queue.events("ann", job.id, kind="metrics", limit=1)
    assert ([event.message for event in page.items], page.has_more) == (["Step 2"], True)
    assert "Step 1" not in [
        it.message for it in jobs.queue.events("ann", job.id, kind="message").items
    ]


def test_names_of_files(jobs: Jobs) -> None:
    mine, other = jobs.file("ann"), jobs.file("bob")
    assert jobs.files.names("ann", [mine, other, "file-none"]) == {mine: "x.jsonl"}
