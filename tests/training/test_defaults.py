"""From a job's wishes to a plan."""

from dataclasses import asdict

import pytest

from server.jobs.options import TrainOptions
from server.training.defaults import Plan, plan_for


def test_what_is_left_open_takes_the_defaults() -> None:
    assert plan_for(TrainOptions(), seed=3, max_rank=1024, lines=56) == Plan(seed=3)


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
    plan = asdict(plan_for(TrainOptions(**wish), seed=3, max_rank=1024, lines=56))  # type: ignore[arg-type]
    assert plan == {**asdict(Plan(seed=3)), **wish}


def test_a_multiplier_is_of_the_default_rate() -> None:
    plan = plan_for(TrainOptions(learning_rate_multiplier=0.5), seed=3, max_rank=1024, lines=56)
    assert plan.learning_rate == Plan(seed=3).learning_rate / 2


def test_the_jobs_seed_goes_before_the_options() -> None:
    assert plan_for(TrainOptions(seed=9), seed=3, max_rank=1024, lines=56).seed == 3


def test_a_default_rank_is_one_that_is_served() -> None:
    assert plan_for(TrainOptions(), seed=3, max_rank=5, lines=56).rank == 5


def test_many_lines_are_read_less_often_in_larger_batches() -> None:
    plans = [
        plan_for(TrainOptions(), seed=3, max_rank=64, lines=lines)
        for lines in (1, 10, 56, 116, 1000, 10**6)
    ]
    assert [plan.n_epochs for plan in plans] == [15, 15, 6, 3, 2, 2]
    assert [plan.batch_size for plan in plans] == [4, 4, 4, 4, 15, 32]
