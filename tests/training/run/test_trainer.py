"""The trainer: it learns, it resumes to the same bits, and touches nothing but its vectors."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from server.adapters.learning.trainable import TrainableAdapter
from server.bases.model import BaseModel
from server.errors import TrainingFailed
from server.jobs.queue.train_options import MAX_SEED
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.run.defaults import TrainPlan
from server.training.run.examples import Example
from server.training.run.run_steps import run
from server.training.run.trainer import Trainer
from tests.models import KINDS, Kind, tiny_model

PLAN = TrainPlan(seed=5, rank=8, learning_rate=0.02, n_epochs=4, batch_size=4, dropout=0.1)


def make_examples(count: int, seed: int = 0) -> list[Example]:
    """Counting up from some number: learnable."""
    draw = random.Random(seed)
    examples = []
    for _ in range(count):
        start, length = draw.randrange(10), draw.randrange(6, 20)
        tokens = tuple(range(start, start + length))
        examples.append(Example(tokens, tuple(index >= 3 for index in range(length))))
    return examples


def make_trainer(
    kind: Kind = "llama",
    plan: TrainPlan = PLAN,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Trainer:
    base = BaseModel.of(tiny_model(kind, dtype=dtype).to(device), kind)  # type: ignore[arg-type]
    adapter = TrainableAdapter(
        base, plan.method, plan.rank, plan.basis_seed, plan.targets, plan.adapter_options()
    )
    return Trainer(base, adapter, make_examples(30), make_examples(6, seed=1), plan)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_leaves_the_base_alone(kind: Kind) -> None:
    trainer = make_trainer(kind)
    before = {name: p.clone() for name, p in trainer.base.model.named_parameters()}
    first, *_, last = run(trainer)
    assert first.valid_loss is not None
    assert last.valid_loss is not None
    assert last.valid_loss < first.valid_loss - 0.1
    for name, parameter in trainer.base.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_learns_on_a_gpu_and_resumes_there(dtype: torch.dtype) -> None:
    whole = make_trainer(device="cuda", dtype=dtype)
    first, *_, last = run(whole)
    assert first.valid_loss is not None
    assert last.valid_loss is not None
    assert last.valid_loss < first.valid_loss - 0.1
    half = make_trainer(device="cuda", dtype=dtype)
    next(progress for progress in run(half) if progress.step == 16)
    rest = make_trainer(device="cuda", dtype=dtype)
    rest.restore(half.checkpoint())
    *_, end = run(rest)
    assert end.valid_loss is not None
    assert end.valid_loss == pytest.approx(last.valid_loss, rel=0.05)


def test_before_training_the_score_is_the_bases() -> None:
    trainer = make_trainer()
    first = next(run(trainer))
    assert first.step == 0
    examples = make_examples(6, seed=1)
    losses = []
    for example in examples:
        tokens = torch.tensor([example.tokens])
        logits = trainer.base.model(tokens).logits[0, :-1].log_softmax(-1)
        picked = logits.gather(1, tokens[0, 1:, None])[:, 0]
        losses.append(-picked[torch.tensor(example.counts[1:])])
    assert first.valid_loss is not None
    assert first.valid_loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def scored(metrics: TrainingMetrics) -> tuple[float | None, float | None]:
    return metrics.train_loss, metrics.train_mean_token_accuracy


@pytest.mark.parametrize(
    ("cut", "dtype"),
    [*((cut, torch.float32) for cut in (1, 8, 19, 31)), (8, torch.bfloat16)],
)
def test_resumed_at_any_step_it_ends_in_the_same_bits(cut: int, dtype: torch.dtype) -> None:
    whole = make_trainer(dtype=dtype)
    steps = [scored(progress) for progress in run(whole)]
    first = make_trainer(dtype=dtype)
    for progress in run(first):
        if progress.step == cut:
            break
    checkpoint = first.checkpoint()
    second = make_trainer(dtype=dtype)
    assert second.fits(checkpoint)
    second.restore(checkpoint)
    torch.rand(17)  # whatever else used the generator must not matter
    assert [scored(progress) for progress in run(second)] == steps[cut + 1 :]
    assert second.trained_tokens == whole.trained_tokens
    for mine, theirs in zip(second.adapter.parameters(), whole.adapter.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("changes", [{"seed": 6}, {"rank": 16}, {"n_epochs": 5}])
def test_a_checkpoint_of_another_plan_does_not_fit(changes: dict[str, Any]) -> None:
    other = make_trainer(plan=replace(PLAN, **changes))
    assert not make_trainer().fits(other.checkpoint())


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    """A smaller token budget changes the memory taken, not what is learnt."""
    plain = replace(PLAN, dropout=0.0, n_epochs=1)
    large, small = (
        make_trainer(plan=plain),
        make_trainer(plan=replace(plain, max_tokens_per_batch=20)),
    )
    for left, right in zip(run(large), run(small), strict=True):
        assert (left.train_loss is None) == (right.train_loss is None)
        if left.train_loss is not None and right.train_loss is not None:
            assert left.train_loss == pytest.approx(right.train_loss, rel=1e-4)


def test_the_largest_seed_will_do() -> None:
    trainer = make_trainer(plan=replace(PLAN, seed=MAX_SEED, basis_seed=2**64 - 1, n_epochs=1))
    assert [progress.step for progress in run(trainer)] == list(range(9))


def test_no_example_is_refused() -> None:
    trainer = make_trainer()
    with pytest.raises(TrainingFailed, match="no line") as caught:
        Trainer(trainer.base, trainer.adapter, [], [], PLAN)
    assert caught.value.code == "no_examples"


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_divergence_ends_the_run(poison: float, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.adapter.parameters()[0].fill_(poison)
    with pytest.raises(TrainingFailed, match=r"learning_rate below 0\.02") as caught:
        list(run(trainer))
    assert caught.value.code == "diverged"


def test_progress_says_how_far_it_is() -> None:
    trainer = make_trainer()
    told = list(run(trainer))
    assert [progress.step for progress in told] == list(range(33))
    assert told[-1].total_steps == 32
    assert told[-1].epoch == 4
    assert told[-1].seconds_left == pytest.approx(0, abs=1e-6)
    assert all((progress.tokens_per_second or 0) > 0 for progress in told[1:])
    scored = [progress.step for progress in told if progress.valid_loss is not None]
    assert scored == [0, 8, 16, 24, 32]
