"""From a job's wishes to a plan."""

from dataclasses import asdict
from pathlib import Path

import pytest

from server.adapters.methods.registry import METHODS, kind_named, method_named, method_specs
from server.jobs.queue.train_options import BASES, DEFAULT_METHOD, TrainOptions, check_method
from server.training.job.start import adapter_options
from server.training.run.defaults import TrainPlan, epochs_for, plan_for
from tests.models import tiny_base

ROWS = [(name, row) for name, spec in method_specs().items() for row in spec.variants]
VARIANTS = [(name, row.trained) for name, row in ROWS]
DOC = Path(__file__).parents[3] / "docs" / "methods.md"


def test_what_is_left_open_takes_the_defaults() -> None:
    assert plan_for(TrainOptions(), seed=3, max_rank=1024, lines=56) == TrainPlan(seed=3)


@pytest.mark.parametrize(
    "wish",
    [
        {"rank": 17},
        {"targets": "attention"},
        {"targets": ("q_proj", "v_proj")},
        {"learning_rate": 0.5},
        {"n_epochs": 1},
        {"validation_split": 0.0},
        {"dropout": 0.0},
        {"schedule": "linear"},
        {"basis": "per-layer"},
        {"d_initial": 0.02},
        {"max_tokens_per_batch": 99},
    ],
)
def test_what_is_asked_for_is_taken(wish: dict[str, object]) -> None:
    plan = asdict(plan_for(TrainOptions(**wish), seed=3, max_rank=1024, lines=56))  # type: ignore[arg-type]
    assert plan == {**asdict(TrainPlan(seed=3)), **wish}


def test_a_multiplier_is_of_the_default_rate() -> None:
    plan = plan_for(TrainOptions(learning_rate_multiplier=0.5), seed=3, max_rank=1024, lines=56)
    assert plan.learning_rate == TrainPlan(seed=3).learning_rate / 2


def test_the_jobs_seed_goes_before_the_options() -> None:
    assert plan_for(TrainOptions(seed=9), seed=3, max_rank=1024, lines=56).seed == 3


def test_a_default_rank_is_one_that_is_served() -> None:
    assert plan_for(TrainOptions(), seed=3, max_rank=5, lines=56).rank == 5


def test_many_lines_are_read_less_often_in_larger_batches() -> None:
    plans = [
        plan_for(TrainOptions(), seed=3, max_rank=64, lines=lines)
        for lines in (1, 10, 30, 56, 100, 150, 300, 1000, 10**6)
    ]
    assert [plan.n_epochs for plan in plans] == [8, 8, 4, 2, 2, 2, 2, 2, 2]
    assert [plan.batch_size for plan in plans] == [4, 4, 4, 4, 4, 4, 4, 15, 32]


def planned(**wish: object) -> TrainPlan:
    return plan_for(TrainOptions(**wish), seed=3, max_rank=256, lines=56)  # type: ignore[arg-type]


def test_every_method_says_where_its_defaults_come_from() -> None:
    assert all(row.source for _, row in ROWS)
    assert [spec.variant().trained for spec in method_specs().values()] == ["d+b", None, "B", None]


def test_the_first_method_of_the_list_is_the_default() -> None:
    assert METHODS[0].spec.name == TrainOptions().method == DEFAULT_METHOD


@pytest.mark.parametrize(("method", "trained"), VARIANTS)
def test_every_default_is_an_option_of_its_method(method: str, trained: str | None) -> None:
    """What the table gives, a job may ask for, and the method reads it as it was meant."""
    plan = planned(method=method, trained=trained)
    row = kind_named(method).spec.variant(trained)
    assert (plan.method, plan.trained, plan.rank) == (method, trained, row.rank)
    assert plan.learning_rate == row.learning_rate
    options = plan.adapter_options()
    assert options.pop("dropout") == 0.0
    wish = TrainOptions(method=method, **options)  # type: ignore[arg-type]
    check_method(wish, method_specs())
    assert plan_for(wish, seed=3, max_rank=256, lines=56) == plan
    read = method_named(method, {name: str(value) for name, value in options.items()})
    assert read.name == method
    assert read.default_scale(plan.rank) == (1.0 if plan.alpha is None else plan.alpha / plan.rank)
    for name, value in read.options.items():
        assert str(options.get(name, value)) == value


@pytest.mark.parametrize("basis", BASES)
def test_both_bases_of_vera_are_known(basis: str) -> None:
    assert method_named("vera", {"basis": basis}).options["basis"] == basis


@pytest.mark.parametrize("method", ["lora", "asymmetric-lora"])
def test_alpha_is_twice_whatever_rank_is_asked_for(method: str) -> None:
    assert planned(method=method).alpha == 2 * kind_named(method).spec.variant().rank
    assert planned(method=method, rank=3).alpha == 6
    assert planned(method=method, rank=3, alpha=1.5).alpha == 1.5
    assert plan_for(TrainOptions(method=method), seed=3, max_rank=4, lines=56).alpha == 8


def test_a_multiplier_is_of_the_methods_own_rate() -> None:
    for name, row in ROWS:
        plan = planned(method=name, trained=row.trained, learning_rate_multiplier=0.5)
        assert plan.learning_rate == row.learning_rate / 2


def test_the_root_of_the_width_is_taken_over_the_targets() -> None:
    base = tiny_base("llama")  # 48 wide, 80 in the middle; k and v give 24
    for targets, narrowest in (("all-linear", 48), (("k_proj", "v_proj"), 24)):
        plan = planned(method="randlora", sparsity="sqrt", targets=targets)
        assert adapter_options(plan, base)["sparsity"] == pytest.approx(narrowest**0.5)
    assert adapter_options(planned(method="randlora", sparsity=6), base)["sparsity"] == 6
    assert adapter_options(planned(method="randlora"), base)["sparsity"] == "dense"


def test_the_documentation_has_this_table() -> None:
    text = DOC.read_text(encoding="utf-8")
    for name, row in ROWS:
        cells = (name, row.trained or "all", row.rank, f"{row.learning_rate:g}", row.source)
        assert "| {} | {} | {} | {} | {} |".format(*cells) in text


@pytest.mark.parametrize("lines", [10, 30, 56, 280, 10**5])
def test_who_reads_a_file_more_often_than_usual_takes_smaller_steps(lines: int) -> None:
    usual = epochs_for(lines)
    for name, row in ROWS:
        rates = [
            plan_for(
                TrainOptions(method=name, trained=row.trained, n_epochs=epochs),
                seed=3, max_rank=256, lines=lines,
            ).learning_rate
            for epochs in (1, usual, 3 * usual)
        ]  # fmt: skip
        assert rates == pytest.approx([row.learning_rate] * 2 + [row.learning_rate / 3])


def test_a_rate_that_is_asked_for_does_not_depend_on_the_epochs() -> None:
    wish = TrainOptions(learning_rate=0.05, n_epochs=9)
    assert plan_for(wish, seed=3, max_rank=256, lines=56).learning_rate == 0.05
