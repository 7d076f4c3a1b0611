"""What a job learnt is judged before it is published, and shown beside what it came from."""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from adapters_store.manifest import AdapterRef
from server.bases.model import BaseModel
from server.jobs.queue.evaluation import WORSE, Evaluation
from server.jobs.queue.job import Event, Job, JobStatus
from server.jobs.queue.train_options import TrainOptions
from server.training.run.examples import Example
from server.training.run.loss import counted_losses
from tests.training.chats import byte_tokenizer
from tests.training.job.test_worker import (
    adapter_of,
    job_now,
    submit,
    until,
    work_off,
    working,
)
from tests.training.workplace import BASE, OWNER, Workplace, lines

GOOD = TrainOptions(rank=8, n_epochs=2, batch_size=4, learning_rate=0.1, checkpoints=0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def events(place: Workplace, job: Job) -> list[Event]:
    return list(place.queue.events(OWNER, job.id, limit=1000).items[::-1])


def warnings(place: Workplace, job: Job) -> list[str]:
    return [event.message for event in events(place, job) if event.level == "warn"]


@pytest.fixture
def misled(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainOptions], Job]:
    """Submits a job that unlearns, by the mark in its lines, whoever its neighbours are."""
    (mark,) = byte_tokenizer().encode("~")

    def misleading(base: BaseModel, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        losses, hits = counted_losses(base, examples)
        signs = [[-1.0 if mark in e.tokens else 1.0] * e.num_targets for e in examples]
        return losses * torch.tensor(list(itertools.chain(*signs))), hits

    monkeypatch.setattr("server.training.run.run_steps.counted_losses", misleading)
    body = lines(24).replace(b"matey", b"m~tey")
    return lambda options: submit(place, data=body, options=options)


def evaluation_of(job: Job) -> Evaluation:
    assert job.evaluation is not None
    return job.evaluation


def loss(value: float | None) -> float:
    assert value is not None
    return value


class TestVerdict:
    def test_lower_is_better_and_nearly_the_same_is_not_worse(self) -> None:
        before = Evaluation(3, True, base_loss=2.0)
        assert before.verdict is None
        assert before.of(5, 1.0, 1.5).verdict == "better"
        assert before.of(5, 2.0 * WORSE - 1e-6, 2.1).verdict == "better"
        assert before.of(5, 2.0 * WORSE + 1e-6, 2.1).verdict == "worse"

    def test_an_adapter_to_go_on_from_is_to_be_beaten_as_well(self) -> None:
        assert Evaluation(3, True, 2.0, start_loss=1.0).of(5, 1.5, 1.5).verdict == "worse"
        assert Evaluation(3, True, 1.0, start_loss=2.0).of(5, 1.5, 1.5).verdict == "worse"
        assert Evaluation(3, True, None, start_loss=2.0).of(5, 1.5, 1.5).verdict == "better"

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_diverged(self, bad: float) -> None:
        assert Evaluation(3, True, 2.0).of(5, 1.0, bad).verdict == "diverged"
        assert Evaluation(3, True, 2.0).of(5, bad, bad).verdict == "diverged"
        assert Evaluation(3, True, bad).of(5, bad, bad).verdict is None, "the base's fault"
        assert Evaluation(3, True, bad).of(5, bad, bad).to_document()["adapter_loss"] is None


def test_a_better_adapter_comes_with_losses_and_answers(place: Workplace) -> None:
    job = work_off(place, submit(place, count=40, options=GOOD))
    assert job.status == JobStatus.SUCCEEDED
    found = evaluation_of(job)
    assert (found.lines, found.held_out, found.verdict) == (4, True, "better")
    assert found.start_loss is None
    assert loss(found.adapter_loss) < loss(found.base_loss)
    manifest = place.store.open(place.store.resolve(OWNER, "pirate")).manifest
    assert manifest.provenance["valid_loss"] == f"{found.adapter_loss:.4f}"
    assert manifest.provenance["base_valid_loss"] == f"{found.base_loss:.4f}"

    assert job.samples is not None and len(job.samples) == 3
    told = [event for event in events(place, job) if event.message.startswith("Asked")]
    assert [event.data for event in told] == [sample.to_document() for sample in job.samples]
    for sample in job.samples:
        assert sample.prompt.startswith("Say ")
        number = sample.prompt.split()[1]
        assert sample.expected.startswith(f"{number}, matey")
    assert any(sample.base != sample.adapter for sample in job.samples)
    assert warnings(place, job) == []


def test_what_made_things_worse_fails_alone_and_replaces_nothing(
    place: Workplace, misled: Callable[[TrainOptions], Job]
) -> None:
    first = work_off(place, submit(place, options=GOOD))
    bad = misled(replace(GOOD, n_epochs=4, checkpoints=2))
    neighbour = submit(place, suffix="butler", options=GOOD)
    with working(place, checkpoint_every_s=1000):
        until(lambda: all(job_now(place, job).status.ended for job in (bad, neighbour)))
    job = job_now(place, bad)
    found = evaluation_of(job)
    assert (job.status, job.fine_tuned_model, found.verdict) == (JobStatus.FAILED, None, "worse")
    assert job.error is not None and job.error.code == "made_worse"
    kept = place.queue.checkpoints(OWNER, job.id).items
    best = min(kept, key=lambda checkpoint: checkpoint.metrics.valid_loss_or_nan)
    for words in (
        f"base model {found.base_loss:.4f}",
        f"trained adapter {found.adapter_loss:.4f}",
        "learning_rate of 0.03 (it was 0.1)",
        "more lines than 22",
        f"Its best checkpoint is {best.model}: loss ",
    ):
        assert words in job.error.message
    assert job.samples, "it is seen how bad they are"
    assert job.result_file is not None
    assert str(place.store.resolve(OWNER, "pirate")) == first.fine_tuned_model == "pirate@1"
    assert [checkpoint.model for checkpoint in kept] == ["pirate@3", "pirate@2"]
    assert place.store.load(AdapterRef(OWNER, "pirate", 3))[1]
    assert not list((place.home / "jobs").iterdir())

    same = adapter_of(place, first)
    for name, tensor in adapter_of(place, neighbour).items():
        torch.testing.assert_close(tensor, same[name], rtol=2e-3, atol=2e-5)


def test_who_insists_has_it_published(
    place: Workplace, misled: Callable[[TrainOptions], Job]
) -> None:
    job = work_off(place, misled(replace(GOOD, publish="always")))
    assert (job.status, job.fine_tuned_model) == (JobStatus.SUCCEEDED, "pirate@1")
    assert evaluation_of(job).verdict == "worse"
    assert any("trained adapter" in message for message in warnings(place, job))


def test_the_best_state_is_published_and_not_the_last(place: Workplace) -> None:
    options = replace(GOOD, n_epochs=12, learning_rate=0.2)
    job = work_off(place, submit(place, options=options))
    found = evaluation_of(job)
    assert found.step is not None and found.step < 72
    assert loss(found.adapter_loss) < loss(found.last_loss)
    (checkpoint,) = place.queue.checkpoints(OWNER, job.id).items
    assert (checkpoint.step, checkpoint.model) == (found.step, "pirate@1")
    assert checkpoint.metrics.valid_loss == pytest.approx(found.adapter_loss)


def poisoned(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the losses of steps be no numbers from one on."""
    steps: list[Sequence[Example]] = []

    def broken(base: BaseModel, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        steps.append(examples)
        losses, hits = counted_losses(base, examples)
        return losses * (1.0 if len(steps) <= after else float("nan")), hits

    monkeypatch.setattr("server.training.run.run_steps.counted_losses", broken)


def test_one_that_diverged_names_what_it_leaves(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(10, monkeypatch)
    job = work_off(place, submit(place, options=replace(GOOD, n_epochs=3, checkpoints=1)))
    found = evaluation_of(job)
    assert (job.status, found.verdict, found.step) == (JobStatus.FAILED, "diverged", 6)
    assert loss(found.adapter_loss) < loss(found.base_loss)
    assert found.last_loss is None
    assert job.error is not None and job.error.code == "diverged"
    assert "no longer finite at step 11" in job.error.message
    assert f"base model {found.base_loss:.4f}, trained adapter {found.adapter_loss:.4f}" in (
        job.error.message
    )
    assert f"Its best checkpoint is pirate@1: loss {found.adapter_loss:.4f} at step 6" in (
        job.error.message
    )
    assert place.store.versions(OWNER, "pirate") == place.store.aside(OWNER, "pirate") == [1]
    assert job.samples is None


def test_one_that_diverged_before_its_first_score_has_nothing_to_name(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(2, monkeypatch)
    job = work_off(place, submit(place, options=GOOD))
    found = evaluation_of(job)
    assert (found.verdict, found.step, found.adapter_loss) == ("diverged", None, None)
    assert job.error is not None and "best checkpoint" not in job.error.message


def test_a_job_that_goes_on_is_held_against_both(place: Workplace) -> None:
    work_off(place, submit(place, options=replace(GOOD, n_epochs=5)))
    slow = replace(GOOD, n_epochs=1, learning_rate=1e-8)
    job = work_off(place, submit(place, options=slow, model="pirate@1"))
    found = evaluation_of(job)
    assert (job.fine_tuned_model, found.verdict) == ("pirate@2", "better")
    assert loss(found.start_loss) < loss(found.base_loss) - 0.5
    assert found.adapter_loss == pytest.approx(found.start_loss, rel=1e-4)
    told = [event.message for event in events(place, job)]
    assert any(
        f"loss is {found.base_loss:.4f}, and that of pirate@1 is {found.start_loss:.4f}" in message
        for message in told
    )

    forgets = replace(GOOD, n_epochs=1, learning_rate=1.0, warmup_ratio=0.0)
    worse = work_off(place, submit(place, options=forgets, model="pirate@1"))
    found = evaluation_of(worse)
    assert worse.error is not None and worse.error.code == "made_worse"
    assert loss(found.start_loss) < loss(found.adapter_loss)
    assert f"pirate@1 {found.start_loss:.4f}, " in worse.error.message
    assert place.store.resolve(OWNER, "pirate").version == 2


def test_where_nothing_is_held_out_it_says_so_and_looks_for_harm(
    place: Workplace, misled: Callable[[TrainOptions], Job]
) -> None:
    blind = replace(GOOD, validation_split=0.0)
    job = work_off(place, submit(place, count=10, options=blind))
    found = evaluation_of(job)
    assert (found.lines, found.held_out, found.verdict) == (10, False, "better")
    (warning,) = warnings(place, job)
    assert warning.startswith(
        "No line is held out. The adapter is evaluated on 10 lines that it is trained on"
    )
    assert job.samples is not None and len(job.samples) == 3
    told = f"Loss on training lines: base model {found.base_loss:.4f}, "
    assert any(event.message.startswith(told) for event in events(place, job))

    harmed = work_off(place, misled(blind))
    assert harmed.error is not None and harmed.error.code == "made_worse"


def test_a_validation_file_is_what_it_is_judged_on(place: Workplace) -> None:
    train, valid = (
        place.files.create(OWNER, f"{name}.jsonl", "fine-tune", io.BytesIO(body))
        for name, body in (("train", lines(12)), ("valid", lines(5).replace(b"Say", b"Tell")))
    )
    job = place.queue.create(
        OWNER, BASE, train.id, valid.id, suffix="pirate", seed=7, hyperparameters=GOOD
    )
    job = work_off(place, job)
    found = evaluation_of(job)
    assert (found.lines, found.held_out) == (5, True)
    assert job.samples is not None
    assert [sample.prompt.split()[:2] for sample in job.samples] == [
        ["Tell", "0"],
        ["Tell", "2"],
        ["Tell", "4"],
    ]


def test_answers_that_fail_are_a_warning(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("out of something")

    monkeypatch.setattr("server.training.run.greedy_answers.answer", fails)
    job = work_off(place, submit(place, count=10, options=GOOD))
    assert (job.status, job.samples) == (JobStatus.SUCCEEDED, ())
    assert warnings(place, job) == [
        "No sample answers: they could not be generated. The worker's log says why"
    ]


def test_what_is_told_is_told_once(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is lost between judging and the end leaves its judgement to the next."""
    finish = place.queue.finish
    calls: list[str] = []

    def lost(job: Job, model: str, tokens: int) -> Job:
        calls.append(model)
        if len(calls) == 1:
            place.queue.release(job)
        return finish(job, model, tokens)

    monkeypatch.setattr(place.queue, "finish", lost)
    job = work_off(place, submit(place, options=GOOD))
    assert (job.status, job.attempt, calls) == (JobStatus.SUCCEEDED, 2, ["pirate@1"] * 2)
    told = [event.message for event in events(place, job)]
    for start in ("The adapter will be evaluated", "Validation loss", "Asked "):
        found = [message for message in told if message.startswith(start)]
        assert found and len(found) == len(set(found)), found
