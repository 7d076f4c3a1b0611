"""The worker: from a queued job to a published adapter, whatever happens on the way."""

import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from sqlalchemy import select
from torch import Tensor

from adapters_store.manifest import parse_adapter_id
from server.bases.model import BaseModel
from server.db.tables import EventRow, JobRow
from server.errors import UnsupportedModel
from server.jobs.queue.job import Job, JobStatus
from server.jobs.queue.train_options import TrainOptions
from server.training.job.worker_loop import run_worker
from server.training.run.examples import Example
from server.training.run.loss import counted_losses
from server.training.run.run_steps import take_step
from server.training.run.trainer import Trainer
from tests.program import command
from tests.training.workplace import BASE, OWNER, Workplace, lines

ROOT = Path(__file__).parents[3]
OPTIONS = TrainOptions(
    rank=8, n_epochs=5, batch_size=4, learning_rate=0.02, dropout=0.1, checkpoints=0
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the other process: the number of threads decides the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def submit(
    place: Workplace,
    *,
    count: int = 24,
    options: TrainOptions = OPTIONS,
    model: str = BASE,
    data: bytes | None = None,
    suffix: str | None = "pirate",
) -> Job:
    body = lines(count) if data is None else data
    file = place.files.create(OWNER, "chats.jsonl", "fine-tune", io.BytesIO(body))
    return place.queue.create(OWNER, model, file.id, suffix=suffix, seed=7, hyperparameters=options)


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < timeout_s, "it did not happen in time"
        time.sleep(min(0.005 + waited / 20, 0.05))


def job_now(place: Workplace, job: Job) -> Job:
    return place.queue.get(OWNER, job.id)


@contextmanager
def working(place: Workplace, **changes: float) -> Iterator[threading.Event]:
    """A worker in a thread of this process."""
    stop = threading.Event()
    thread = threading.Thread(target=run_worker, args=(place.parts(**changes), stop))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def work_off(place: Workplace, job: Job) -> Job:
    with working(place, checkpoint_every_s=1000):
        until(lambda: job_now(place, job).status.ended)
    return job_now(place, job)


def beating() -> bool:
    """True while a worker of this process has a job in hand."""
    return any(thread.name == "heartbeat" for thread in threading.enumerate())


@contextmanager
def worker_process(
    place: Workplace, moment: str, suffers: str
) -> Iterator[subprocess.Popen[bytes]]:
    started = command("tests.training.workplace", str(place.home), moment, suffers)
    process = subprocess.Popen(started, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def adapter_of(place: Workplace, job: Job) -> dict[str, Tensor]:
    result = parse_adapter_id(str(job_now(place, job).fine_tuned_model))
    _, tensors, _ = place.store.load(place.store.resolve(OWNER, *result))
    return tensors


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def checkpoint_steps(place: Workplace, job: Job) -> list[int]:
    return [int(path.stem[5:]) for path in (place.home / "jobs" / job.id).glob("step-*")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the job gives when nothing happens to it."""
    place = Workplace.at(tmp_path_factory.mktemp("undisturbed"))
    torch.set_num_threads(1)
    job = submit(place)
    work_off(place, job)
    return adapter_of(place, job)


def test_a_job_becomes_an_adapter(place: Workplace) -> None:
    job = work_off(place, submit(place))
    assert job.status == JobStatus.SUCCEEDED
    assert job.fine_tuned_model == "pirate@1"
    assert job.trained_tokens is not None
    assert job.trained_tokens > 500
    ref = place.store.resolve(OWNER, "pirate")
    manifest = place.store.open(ref).manifest
    assert manifest.provenance["job"] == job.id
    assert manifest.rank == 8
    (checkpoint,) = place.queue.checkpoints(OWNER, job.id).items
    assert checkpoint.model == "pirate@1"
    assert set(checkpoint.metrics.to_document()) == {
        "step",
        "train_loss",
        "train_mean_token_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    }
    assert not list((place.home / "jobs").iterdir())


def test_events_tell_of_every_scored_step_and_of_learning(place: Workplace) -> None:
    job = work_off(place, submit(place))
    events = place.queue.events(OWNER, job.id, limit=1000).items[::-1]
    metrics = [event.data for event in events if event.type == "metrics" and event.data]
    steps = [int(str(data["step"])) for data in metrics]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, metrics[0]["total_steps"])
    scored = [float(str(data["valid_loss"])) for data in metrics if "valid_loss" in data]
    assert scored[-1] < scored[0]
    messages = [event.message for event in events]
    assert (
        "The adapter will be evaluated on 2 lines held out from training. "
        f"The base model's loss is {scored[0]:.4f}"
    ) in messages
    assert messages.index(
        f"Validation loss: base model {scored[0]:.4f}, trained adapter {scored[-1]:.4f}"
    ) < messages.index("New fine-tuned model created: pirate@1")
    assert {"train_loss", "learning_rate", "tokens_per_second", "seconds_left"} <= set(metrics[-1])


def test_a_second_job_of_a_name_is_a_new_version(place: Workplace) -> None:
    first, second = submit(place, count=10), submit(place, count=10)
    assert work_off(place, first).fine_tuned_model == "pirate@1"
    assert work_off(place, second).fine_tuned_model == "pirate@2"


def test_without_a_suffix_the_job_names_the_adapter(place: Workplace) -> None:
    job = work_off(place, submit(place, count=10, suffix=None))
    assert job.fine_tuned_model == f"ft-{job.id[-8:]}@1"


def test_jobs_that_train_together_learn_as_if_alone(place: Workplace) -> None:
    options = replace(OPTIONS, dropout=None)
    expected = Workplace.at(place.home / "alone")
    counts = (24, 13, 31)
    mine = [submit(place, count=count, options=options) for count in counts]
    alone = [submit(expected, count=count, options=options) for count in counts]
    with working(place, checkpoint_every_s=1000):
        until(lambda: all(job_now(place, job).status.ended for job in mine))
    assert all(both_ran_at_once(place, mine[0], job) for job in mine[1:])
    with working(expected, checkpoint_every_s=1000, jobs=1):
        until(lambda: all(job_now(expected, job).status.ended for job in alone))
    for job, other in zip(mine, alone, strict=True):
        tensors, others = adapter_of(place, job), adapter_of(expected, other)
        for name in tensors:
            torch.testing.assert_close(tensors[name], others[name], rtol=2e-3, atol=2e-5)


def both_ran_at_once(place: Workplace, first: Job, second: Job) -> bool:
    """Whether one told of a step between two that the other told of."""
    numbers = [[int(event.number) for event in steps_told(place, job)] for job in (first, second)]
    return min(numbers[0]) < max(numbers[1]) and min(numbers[1]) < max(numbers[0])


def steps_told(place: Workplace, job: Job) -> Sequence[EventRow]:
    with place.database.reading() as session:
        query = select(EventRow).where(EventRow.job == job.id, EventRow.type == "metrics")
        return session.scalars(query).all()


def test_what_happens_to_one_job_happens_to_no_other(place: Workplace) -> None:
    endless = TrainOptions(rank=8, n_epochs=1000, batch_size=4)
    garbled = submit(place, data=b'{"prompt": "x"}\n' * 10)
    cancelled, good = submit(place, options=endless), submit(place)
    with working(place):
        until(lambda: bool(checkpoint_steps(place, cancelled)))
        place.queue.cancel(OWNER, cancelled.id)
        late = submit(place, count=12)
        jobs = [garbled, cancelled, good, late]
        until(lambda: all(job_now(place, job).status.ended for job in jobs))
    assert [job_now(place, job).status for job in jobs] == [
        JobStatus.FAILED,
        JobStatus.CANCELLED,
        JobStatus.SUCCEEDED,
        JobStatus.SUCCEEDED,
    ]
    assert not list((place.home / "jobs").iterdir())


def test_a_worker_that_stops_gives_every_job_back(place: Workplace) -> None:
    endless = TrainOptions(rank=8, n_epochs=1000, batch_size=4)
    jobs = [submit(place, options=endless) for _ in range(3)]
    with working(place, checkpoint_every_s=1000, jobs=2):
        until(lambda: job_now(place, jobs[1]).status == JobStatus.RUNNING)
        time.sleep(0.2)
        assert job_now(place, jobs[2]).status == JobStatus.QUEUED
    assert {job_now(place, job).status for job in jobs} == {JobStatus.QUEUED}
    assert all(checkpoint_steps(place, job) for job in jobs[:2])


def test_killed_in_the_middle_it_goes_on_to_the_same_bits(
    place: Workplace, undisturbed: dict[str, Tensor]
) -> None:
    job = submit(place)
    with worker_process(place, "step-5", "SIGKILL") as process:
        assert process.wait(timeout=100) == -signal.SIGKILL
    assert job_now(place, job).status == JobStatus.RUNNING
    work_off(place, job)
    assert_same_bits(adapter_of(place, job), undisturbed)
    told = [event.message for event in place.queue.events(OWNER, job.id, limit=1000).items]
    assert "Resuming from step 5 of 30" in told


def test_steps_that_run_again_without_a_checkpoint_are_reported_once(place: Workplace) -> None:
    job = submit(place)
    with worker_process(place, "step-5", "SIGKILL") as process:
        assert process.wait(timeout=100) == -signal.SIGKILL
    for checkpoint in (place.home / "jobs" / job.id).glob("step-*"):
        checkpoint.unlink()
    work_off(place, job)
    events = place.queue.events(OWNER, job.id, limit=1000).items[::-1]
    steps = [
        int(str(event.data["step"])) for event in events if event.type == "metrics" and event.data
    ]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30


@pytest.mark.parametrize(
    ("moment", "checkpoints"), [("before-publish", 0), ("after-publish", 0), ("after-publish", 1)]
)
def test_killed_around_publishing_it_publishes_once(
    place: Workplace, undisturbed: dict[str, Tensor], moment: str, checkpoints: int
) -> None:
    job = submit(place, options=replace(OPTIONS, checkpoints=checkpoints))
    with worker_process(place, moment, "SIGKILL") as process:
        assert process.wait(timeout=100) == -signal.SIGKILL
    assert len(place.store.versions(OWNER, "pirate")) == (moment == "after-publish")
    versions = list(range(1, checkpoints + 2))
    assert work_off(place, job).fine_tuned_model == f"pirate@{versions[-1]}"
    assert place.store.versions(OWNER, "pirate") == versions
    told = place.queue.checkpoints(OWNER, job.id).items
    assert [checkpoint.model for checkpoint in told[::-1]] == [f"pirate@{v}" for v in versions]
    assert place.files.list(OWNER, purpose="fine-tune-results").items[0].id == (
        job_now(place, job).result_file
    )
    assert_same_bits(adapter_of(place, job), undisturbed)


def test_sigterm_gives_the_job_back_and_another_goes_on(
    place: Workplace, undisturbed: dict[str, Tensor]
) -> None:
    job = submit(place)
    with worker_process(place, "step-3", "SIGTERM") as process:
        assert process.wait(timeout=100) == 0
    assert job_now(place, job).status == JobStatus.QUEUED
    work_off(place, job)
    assert_same_bits(adapter_of(place, job), undisturbed)


def test_a_running_job_is_cancelled_and_leaves_nothing(place: Workplace) -> None:
    job = submit(place, options=TrainOptions(rank=8, n_epochs=1000, batch_size=4))
    with working(place):
        until(lambda: bool(checkpoint_steps(place, job)))
        place.queue.cancel(OWNER, job.id)
        until(lambda: job_now(place, job).status.ended)
    assert job_now(place, job).status == JobStatus.CANCELLED
    assert place.store.names(OWNER) == []
    assert checkpoint_steps(place, job) == []


def test_a_worker_that_lost_its_lease_publishes_nothing(
    place: Workplace, undisturbed: dict[str, Tensor]
) -> None:
    """Two workers on one job: the later attempt alone publishes, and both saw the same steps."""
    job = submit(place)
    stale = place.queue.claim("a worker that hangs", lease_s=0.01)
    assert stale is not None
    time.sleep(0.02)
    work_off(place, job)
    assert job_now(place, job).attempt == 2
    assert place.store.versions(OWNER, "pirate") == [1]
    assert_same_bits(adapter_of(place, job), undisturbed)


def test_a_worker_whose_job_was_taken_over_drops_it(place: Workplace) -> None:
    job = submit(place, options=TrainOptions(rank=8, n_epochs=1000, batch_size=4))
    with working(place):
        until(lambda: bool(checkpoint_steps(place, job)))
        with place.database.transaction() as session:
            row = session.scalars(select(JobRow)).one()
            row.attempt, row.lease_until = row.attempt + 1, time.time() + 1000
        until(lambda: place.queue.claim("idle again", 1.0) is None and not beating())
    assert job_now(place, job).status == JobStatus.RUNNING
    assert place.store.names(OWNER) == []


def test_a_checkpoint_of_other_data_is_not_gone_on_from(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    third, go = threading.Event(), threading.Event()

    def wait_and_step(trainers: Sequence[Trainer], *args: Any) -> object:
        if trainers[0].step == 3:
            third.set()
            assert go.wait(30)
        return take_step(trainers, *args)

    monkeypatch.setattr("server.training.job.worker_loop.take_step", wait_and_step)
    other, job = submit(place, count=10), submit(place, count=12)
    with working(place, jobs=1) as stop:
        assert third.wait(60)
        stop.set()
        go.set()
    (place.home / "jobs" / other.id).rename(place.home / "jobs" / job.id)
    place.queue.cancel(OWNER, other.id)
    assert work_off(place, job).status == JobStatus.SUCCEEDED
    events = place.queue.events(OWNER, job.id, limit=1000).items
    assert any("Training starts over" in event.message for event in events)


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ({"model": "other"}, "invalid_request", "model 'other' cannot be trained"),
        ({"model": "pirate@1"}, "training_failed", "has no adapter 'pirate'"),
        ({"data": b'{"prompt": "x"}\n' * 10}, "invalid_request", "line 1"),
        (
            {"data": b'{"prompt": "%s", "completion": "y"}\n' % (b"x" * 400)},
            "invalid_request",
            "tokens are more than the 256",
        ),
        (
            {"options": TrainOptions(rank=8, targets=("nowhere_proj",))},
            "invalid_request",
            "nowhere_proj",
        ),
    ],
)
def test_what_cannot_be_trained_fails_with_a_reason(
    place: Workplace, fault: dict[str, object], code: str, says: str
) -> None:
    job = work_off(place, submit(place, **fault))  # type: ignore[arg-type]
    assert job.status == JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == code
    assert says in job.error.message


def test_a_base_that_cannot_be_loaded_ends_the_worker_and_not_the_job(place: Workplace) -> None:
    def load() -> NoReturn:
        raise UnsupportedModel("no base here")

    job = submit(place)
    with pytest.raises(UnsupportedModel):
        run_worker(place.parts(load=load), threading.Event())
    assert job_now(place, job).status == JobStatus.QUEUED
    events = place.queue.events(OWNER, job.id).items
    assert any("no base here" in event.message for event in events)


def test_a_diverged_job_fails_with_advice(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Sequence[Example]] = []

    def broken(base: BaseModel, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        steps.append(examples)
        if len(steps) <= 3:
            return counted_losses(base, examples)
        count = sum(example.num_targets for example in examples)
        losses = torch.full((count,), float("nan"), requires_grad=True)
        return losses, torch.zeros(count, dtype=torch.bool)

    monkeypatch.setattr("server.training.run.run_steps.counted_losses", broken)
    job = work_off(place, submit(place))
    assert job.error is not None
    assert job.error.code == "diverged"
    assert "learning_rate below 0.02" in job.error.message
    assert job.result_file is not None
    table = place.files.path(OWNER, job.result_file).read_text().splitlines()
    assert [row.partition(",")[0] for row in table] == ["step", "0", "1", "2", "3"]
