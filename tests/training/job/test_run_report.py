"""What a run tells its owner."""

import math

import pytest
import torch

from server.errors import InvalidDataset, InvalidRequest, LineProblem, NotFound, TrainingFailed
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job.run_report import overfitting, reason_of, sentence, updated


def progress(step: int, train: float | None = None, valid: float | None = None) -> TrainingMetrics:
    return TrainingMetrics(step, total_steps=10, train_loss=train, valid_loss=valid)


def run(*steps: TrainingMetrics) -> TrainingMetrics:
    metrics = TrainingMetrics(0)
    for step in steps:
        metrics = updated(metrics, step)
    return metrics


def test_metrics_keep_the_newest_and_the_best() -> None:
    metrics = run(progress(0, None, 3.0), progress(1, 2.0, 1.5), progress(2, 1.0), progress(3, 0.5))
    assert metrics.step == 3
    assert metrics.train_loss == 0.5
    assert metrics.valid_loss == 1.5
    assert (metrics.best_valid_loss, metrics.best_step) == (1.5, 1)


def test_what_a_run_began_with_is_not_its_best() -> None:
    metrics = run(progress(0, None, 1.0), progress(1, 2.0, 1.5), progress(2, 2.0, 1.5))
    assert (metrics.best_valid_loss, metrics.best_step) == (1.5, 1)
    assert metrics.scores_since_best == 1
    metrics = run(progress(1, 2.0, float("nan")), progress(2, 2.0, 1.5), progress(3, 2.0, math.inf))
    assert (metrics.best_step, metrics.scores_since_best) == (2, 1)


def test_advice_only_when_the_score_got_clearly_worse() -> None:
    worse = overfitting(run(progress(0, None, 3.0), progress(4, 1.0, 2.0), progress(8, 0.1, 2.9)))
    assert worse is not None
    assert "lowest at step 4 (2.0000)" in worse
    assert (
        overfitting(run(progress(0, None, 3.0), progress(4, 1.0, 2.0), progress(8, 0.5, 2.1)))
        is None
    )
    assert overfitting(run(progress(0), progress(4, 1.0))) is None


def test_a_step_in_words() -> None:
    assert sentence(progress(0)) == "Step 0/10"
    assert sentence(progress(3, 1.0, 2.0)) == (
        "Step 3/10: training loss=1.0000, validation loss=2.0000"
    )


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (TrainingFailed("x", code="diverged"), "diverged", None),
        (InvalidRequest("x", param="rank"), "invalid_request", "rank"),
        (InvalidDataset("x", [LineProblem(1, "y")]), "invalid_request", "training_file"),
        (NotFound("x"), "training_failed", None),
        (torch.OutOfMemoryError("x"), "out_of_memory", None),
        (RuntimeError("secret"), "internal_error", None),
    ],
)
def test_why_a_job_failed(error: Exception, code: str, param: str | None) -> None:
    found, message, field = reason_of(error)
    assert (found, field) == (code, param)
    assert "secret" not in message
