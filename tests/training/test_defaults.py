"""From a job's wishes to a plan."""

from dataclasses import asdict

import pytest

from server.jobs.options import TrainOptions
from server.training.defaults import Plan, plan_for


def test_what_is_left_open_takes_the_defaults() -> None:
    assert plan_for(TrainOptions(), seed=3, max_rank=1024) == Plan(seed=3)


@pytest.mark.parametrize(
    "wish",
    [
        {"rank": 17},
        {"targets": "attention"},
        {"targets": ("q_proj", "v_proj")},
        {"learning_rate": 0.5},
        {"n_epochs": 3},
        {"validation_split": 0.0},
        {"dropout": 0.0},
        {"schedule": "linear"},
        {"max_tokens_per_batch": 99},
    ],
)
def test_what_is_asked_for_is_taken(wish: dict[str, object]) -> None:
    plan = asdict(plan_for(TrainOptions(**wish), seed=3, max_rank=1024))  # type: ignore[arg-type]
    assert plan == {**asdict(Plan(seed=3)), **wish}


def test_a_multiplier_is_of_the_default_rate() -> None:
    plan = plan_for(TrainOptions(learning_rate_multiplier=0.5), seed=3, max_rank=1024)
    assert plan.learning_rate == Plan(seed=3).learning_rate / 2


def test_the_jobs_seed_goes_before_the_options() -> None:
    assert plan_for(TrainOptions(seed=9), seed=3, max_rank=1024).seed == 3


def test_a_default_rank_is_one_that_is_served() -> None:
    assert plan_for(TrainOptions(), seed=3, max_rank=5).rank == 5
