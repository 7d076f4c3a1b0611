"""Runs that share batches: each learns what it would have learnt alone, whoever its neighbours."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.methods import row_shares
from server.adapters.methods.row_shares import Shares
from server.bases.model import BaseModel
from server.errors import TrainingFailed
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.run import run_steps
from server.training.run.defaults import TrainPlan
from server.training.run.examples import Example
from server.training.run.loss import counted_losses
from server.training.run.run_steps import run, take_step
from server.training.run.trainer import Trainer
from tests.models import tiny_model

PLAN = TrainPlan(seed=5, rank=8, learning_rate=0.02, n_epochs=2, batch_size=4)
VARIED: tuple[dict[str, Any], ...] = (
    {},
    {"seed": 9, "learning_rate": 0.05, "batch_size": 3},
    {"rank": 3, "targets": "attention", "n_epochs": 1},
    {"method": "lora", "rank": 2, "learning_rate": 1e-3},
    {"method": "randlora", "rank": 5, "learning_rate": 1e-3, "targets": ("q_proj",)},
    {"method": "asymmetric-lora", "rank": 4, "learning_rate": 1e-3, "basis_seed": 3},
    {"dropout": 0.2, "seed": 2},
)
MAX_TOKENS = 300


def base() -> BaseModel:
    return BaseModel.of(tiny_model("llama"), "tiny")


def examples(seed: int, count: int = 14) -> list[Example]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        start, length = draw.randrange(10), draw.randrange(4, 25)
        tokens = tuple((start + (1 + seed % 3) * i) % 200 for i in range(length))
        made.append(Example(tokens, tuple(index >= 2 for index in range(length))))
    return made


def trainer_of(on: BaseModel, index: int, **changes: Any) -> Trainer:
    plan = replace(PLAN, **VARIED[index % len(VARIED)] | changes)
    adapter = TrainableAdapter(
        on, plan.method, plan.rank, plan.basis_seed, plan.targets, {"dropout": plan.dropout}
    )
    return Trainer(on, adapter, examples(index), examples(100 + index, 4), plan)


def losses(told: Iterable[TrainingMetrics | Exception]) -> list[float]:
    return [
        each.train_loss
        for each in told
        if isinstance(each, TrainingMetrics) and each.train_loss is not None
    ]


def alone(index: int) -> tuple[list[float], dict[str, Tensor]]:
    trainer = trainer_of(base(), index)
    return losses(list(run(trainer))), trainer.adapter.tensors()


def assert_same(mine: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert mine.keys() == others.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], others[name], rtol=2e-3, atol=2e-5)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_each_learns_what_it_would_have_learnt_alone() -> None:
    on = base()
    trainers = [trainer_of(on, index) for index in range(len(VARIED))]
    told: list[list[TrainingMetrics | Exception]] = [[] for _ in trainers]
    while waiting := [index for index, each in enumerate(trainers) if not each.done]:
        results = take_step([trainers[index] for index in waiting], MAX_TOKENS)
        for index, result in zip(waiting, results, strict=True):
            told[index].append(result)
    for index, trainer in enumerate(trainers):
        curve, tensors = alone(index)
        assert losses(told[index]) == pytest.approx(curve, rel=1e-3)
        assert_same(trainer.adapter.tensors(), tensors)


def test_neighbours_of_one_kind_are_one_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    on = base()
    trainers = [trainer_of(on, index) for index in (0, 2, 1, 0)]
    plain, seen = row_shares.reference_scaled, []

    def watched(x: Tensor, vectors: Tensor, of: Shares | None, onto: Tensor | None) -> Tensor:
        seen.append(1 if of is None else len(of.tokens))
        return plain(x, vectors, of, onto)

    monkeypatch.setattr(row_shares, "reference_scaled", watched)
    take_step(trainers, 10_000)
    assert Counter(seen).keys() == {3, 1}, "three of rank 8 on all linears, and one of another kind"
    assert Counter(seen)[3] == 2 * len(on.targets)


def test_one_may_join_and_another_leave_between_steps() -> None:
    on = base()
    first, second = trainer_of(on, 0), trainer_of(on, 1)
    told = [*take_step([first], MAX_TOKENS), *take_step([first], MAX_TOKENS)]
    while not first.done:
        told.append(take_step([second, first], MAX_TOKENS)[1])
    late = list(run(second))
    curve, tensors = alone(0)
    assert losses(told) == pytest.approx(curve, rel=1e-3)
    assert_same(first.adapter.tensors(), tensors)
    curve, tensors = alone(1)
    assert losses(late) == pytest.approx(curve[-len(losses(late)) :], rel=1e-3)
    assert_same(second.adapter.tensors(), tensors)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_one_that_diverges_is_alone_in_it(poison: float) -> None:
    on = base()
    well, ill, other = (trainer_of(on, index) for index in (0, 1, 3))
    with torch.no_grad():
        ill.adapter.parameters()[0].fill_(poison)
    told: list[TrainingMetrics | Exception] = []
    while not well.done:
        members = [well, ill, *([] if other.done else [other])]
        results = take_step(members, MAX_TOKENS)
        told.append(results[0])
        assert isinstance(results[1], TrainingFailed)
        assert results[1].code == "diverged"
        assert ill.step == 0
    curve, tensors = alone(0)
    assert losses(told) == pytest.approx(curve, rel=1e-3)
    assert_same(well.adapter.tensors(), tensors)


def test_what_is_too_much_for_all_is_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = counted_losses

    def at_most(base: BaseModel, part: list[Example]) -> tuple[Tensor, Tensor]:
        if len(part) > 4:
            raise torch.OutOfMemoryError("too much")
        return plain(base, part)

    monkeypatch.setattr(run_steps, "counted_losses", at_most)
    on = base()
    first, second, large = trainer_of(on, 0), trainer_of(on, 2), trainer_of(on, 1, batch_size=9)
    while not (first.done and second.done):
        members = [trainer for trainer in (first, second) if not trainer.done]
        *well, failure = take_step([*members, large], 1000)
        assert all(isinstance(result, TrainingMetrics) for result in well)
        assert isinstance(failure, torch.OutOfMemoryError)
    assert large.step == 0
    for index, trainer in ((0, first), (2, second)):
        assert_same(trainer.adapter.tensors(), alone(index)[1])


def test_where_memory_runs_out_all_take_smaller_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sizes = counted_losses, []

    def at_most(base: BaseModel, part: list[Example]) -> tuple[Tensor, Tensor]:
        sizes.append(len(part))
        if len(part) > 8:
            raise torch.OutOfMemoryError("too much")
        return plain(base, part)

    monkeypatch.setattr(run_steps, "counted_losses", at_most)
    on = base()
    trainers = [trainer_of(on, 0, max_tokens_per_batch=50, seed=seed) for seed in (1, 2, 3)]
    assert all(isinstance(result, TrainingMetrics) for result in take_step(trainers, 500))
    assert sizes[0] == 12, "all at once"
    done = [size for size in sizes if size <= 8]
    assert sum(done) == 12
    assert max(done) > 4, "then in smaller passes, of more than one run"


def test_the_base_runs_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    on = base()
    passes = 0
    watch = on.model.register_forward_pre_hook(lambda *_: count())

    def count() -> None:
        nonlocal passes
        passes += 1

    trainers = [trainer_of(on, index) for index in (0, 1, 2, 3)]
    take_step(trainers, 10_000)
    watch.remove()
    assert passes == 1
