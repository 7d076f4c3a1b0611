"""Jobs that pause, that go on from adapters, that publish on their way, and that stop early."""

import csv
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters_store.manifest import AdapterRef
from server.adapters.learning.targets import resolve_targets
from server.adapters.methods.registry import method_specs
from server.errors import InvalidRequest
from server.jobs.queue.continuing import check_continuable, inherited
from server.jobs.queue.job import Job, JobStatus
from server.jobs.queue.method_spec import OPTIONS as METHOD_OPTIONS
from server.jobs.queue.train_options import TrainOptions
from server.jobs.queue.training_metrics import TrainingMetrics
from server.training.job.metrics_file import COLUMNS, MetricsFile
from server.training.job.publish import milestones
from server.training.run.checkpoint import sweep
from server.training.run.run_steps import take_step
from server.training.run.trainer import Trainer
from tests.training.job.test_worker import (
    OPTIONS,
    adapter_of,
    assert_same_bits,
    checkpoint_steps,
    job_now,
    submit,
    until,
    work_off,
    working,
)
from tests.training.workplace import OWNER, Workplace, load_tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def tensors(place: Workplace, version: int) -> dict[str, Tensor]:
    return place.store.load(AdapterRef(OWNER, "pirate", version))[1]


def told(place: Workplace, job: Job) -> list[str]:
    return [event.message for event in place.queue.events(OWNER, job.id, limit=1000).items[::-1]]


def table(place: Workplace, job: Job) -> list[dict[str, str]]:
    file_id = job_now(place, job).result_file
    assert file_id is not None
    return list(csv.DictReader(io.StringIO(place.files.path(OWNER, file_id).read_text())))


def pause_after(step: int, place: Workplace, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have its owner pause the job after that step, and its worker wait until it knows."""
    known = threading.Event()
    heartbeat = place.queue.heartbeat

    def beat(job: Job, **told: Any) -> object:
        wish = heartbeat(job, **told)
        if wish == "pause":
            known.set()
        return wish

    def pause_and_step(trainers: Sequence[Trainer], *args: Any) -> object:
        if trainers[0].step == step and not known.is_set():
            place.queue.pause(OWNER, job.id)
            assert known.wait(30)
        return take_step(trainers, *args)

    monkeypatch.setattr(place.queue, "heartbeat", beat)
    monkeypatch.setattr("server.training.job.worker_loop.take_step", pause_and_step)


def test_it_publishes_on_its_way_and_pausing_changes_no_bit(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, checkpoints=2)
    job = submit(place, options=options)
    pause_after(14, place, job, monkeypatch)
    with working(place):
        until(lambda: job_now(place, job).status == JobStatus.PAUSED)
        paused_at = max(checkpoint_steps(place, job))
        sweep(place.home / "jobs", older_than_s=-1, keep=place.queue.unfinished())
        place.queue.resume(OWNER, job.id)
        until(lambda: job_now(place, job).status.ended)
    assert f"Resuming from step {paused_at} of 30" in told(place, job)
    checkpoints = place.queue.checkpoints(OWNER, job.id).items[::-1]
    assert [(c.model, c.step) for c in checkpoints] == [
        ("pirate@1", 12),
        ("pirate@2", 18),
        ("pirate@3", 30),
    ]
    assert all(checkpoint.metrics.valid_loss is not None for checkpoint in checkpoints)
    assert place.store.resolve(OWNER, "pirate").version == 3
    assert place.store.aside(OWNER, "pirate") == [1, 2]
    assert place.store.open(AdapterRef(OWNER, "pirate", 1)).manifest.provenance["step"] == "12"

    rows = table(place, job)
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows] == list(range(31))
    assert float(rows[-1]["valid_loss"]) < float(rows[0]["valid_loss"])
    assert rows[0]["train_loss"] == rows[1]["valid_loss"] == "" != rows[1]["train_accuracy"]

    expected = Workplace.at(place.home / "undisturbed")
    other = work_off(expected, submit(expected, options=options))
    assert_same_bits(adapter_of(place, job), adapter_of(expected, other))
    assert_same_bits(tensors(place, 1), tensors(expected, 1))
    assert table(expected, other) == rows


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(method="vera", rank=8, trained="b", basis="per-layer", d_initial=0.5),
        TrainOptions(method="randlora", rank=8, sparsity=3),
        TrainOptions(method="asymmetric-lora", rank=4, trained="A", targets=("q_proj", "up_proj")),
        TrainOptions(method="lora", rank=4, alpha=2.0),
    ],
    ids=lambda options: options.method,
)
def test_a_job_goes_on_from_an_adapter_of_any_method(
    place: Workplace, options: TrainOptions
) -> None:
    short = replace(options, n_epochs=1, batch_size=8, checkpoints=0, learning_rate=1e-3)
    work_off(place, submit(place, options=short))
    first = place.store.open(AdapterRef(OWNER, "pirate", 1)).manifest
    asked = {"n_epochs": 1, "learning_rate": 1e-8, "checkpoints": 0}
    more = TrainOptions(**inherited("pirate@1", first, asked, method_specs()))  # type: ignore[arg-type]
    job = work_off(place, submit(place, options=more, model="pirate@1"))
    assert job.fine_tuned_model == "pirate@2", job.error
    second = place.store.open(AdapterRef(OWNER, "pirate", 2)).manifest
    assert second.provenance["continued_from"] == "pirate@1"
    assert second.provenance["learning_rate"] == "1e-08"
    assert job.plan is not None
    for name in ("method", "rank", *METHOD_OPTIONS):
        if getattr(options, name) is not None:
            assert job.plan[name] == getattr(options, name)
    targets: Any = job.plan["targets"]
    assert resolve_targets(load_tiny()[0], targets) == first.targets
    for field in ("method", "rank", "scale", "seed", "basis_spec", "basis_sha256", "targets"):
        assert getattr(second, field) == getattr(first, field)
    for name, tensor in tensors(place, 2).items():  # at that rate it stays where it began
        torch.testing.assert_close(tensor, tensors(place, 1)[name], rtol=1e-4, atol=1e-5)
    assert any("of pirate@1 is " in message for message in told(place, job))

    wrong = replace(more, targets=("v_proj",))
    failed = work_off(place, submit(place, options=wrong, model="pirate@1"))
    assert failed.error is not None and failed.error.param == "targets"
    assert "contradict pirate@1" in failed.error.message


def test_what_contradicts_the_adapter_is_refused_naming_both(place: Workplace) -> None:
    work_off(place, submit(place, count=10, options=replace(OPTIONS, n_epochs=1)))
    manifest = place.store.open(AdapterRef(OWNER, "pirate", 1)).manifest
    same = {"method": "vera", "rank": 8, "trained": "d+b", "n_epochs": 2, "basis": "auto"}
    kept = {"method": "vera", "rank": 8, "trained": "d+b", "n_epochs": 2}
    assert inherited("pirate@1", manifest, same, method_specs()) == kept
    for param, value in (("method", "lora"), ("rank", 16), ("trained", "b"), ("alpha", 2.0)):
        with pytest.raises(InvalidRequest, match=f"{param}={value!r} contradicts pirate@1") as bad:
            inherited("pirate@1", manifest, {param: value}, method_specs())
        assert bad.value.param == param
    with pytest.raises(InvalidRequest, match="another base"):
        check_continuable("pirate@1", manifest, "0" * 64)
    foreign = replace(manifest, basis_spec="stored/v1")
    with pytest.raises(InvalidRequest, match="imported"):
        check_continuable("pirate@1", foreign, manifest.base_fingerprint)


def test_it_stops_early_and_publishes_the_best(place: Workplace) -> None:
    options = TrainOptions(
        rank=8, n_epochs=60, batch_size=4, learning_rate=1.0, early_stopping=1, checkpoints=0
    )
    job = work_off(place, submit(place, options=options))
    assert job.status == JobStatus.SUCCEEDED, job.error
    rows = [row for row in table(place, job) if row["valid_loss"]]
    best = min(rows, key=lambda row: float(row["valid_loss"]))
    assert rows[-2] == best, "the score after the best ended it"
    assert int(rows[-1]["step"]) < 60 * 6
    (checkpoint,) = place.queue.checkpoints(OWNER, job.id).items
    assert checkpoint.step == int(best["step"])
    assert checkpoint.metrics.valid_loss == pytest.approx(float(best["valid_loss"]), rel=1e-4)
    assert not list((place.home / "jobs").iterdir())

    blind = replace(options, validation_split=0.0)
    failed = work_off(place, submit(place, options=blind))
    assert failed.error is not None and failed.error.param == "early_stopping"


def test_milestones_are_even_and_never_the_last_step() -> None:
    assert milestones(30, 6, 2) == {12, 18}
    assert milestones(30, 10, 9) == {10, 20}
    assert milestones(6, 6, 2) == milestones(30, 6, 0) == frozenset()


def test_results_go_on_from_a_step_and_forgive_half_lines(tmp_path: Path) -> None:
    results = MetricsFile(tmp_path / "run" / "results.csv")
    assert results.table().decode() == ",".join(COLUMNS) + "\n"
    for step in (1, 2, 3, 3):
        results.add(TrainingMetrics(step, train_loss=step / 3, train_mean_token_accuracy=0.5))
    with (tmp_path / "run" / "results.csv").open("a") as file:
        file.write("4,0.1")
    results.cut(2)
    results.sync()
    lines = results.table().decode().splitlines()
    assert lines[1:] == ["1,0.333333,0.5,,", "2,0.666667,0.5,,"]
    results.clear()
    assert not list((tmp_path / "run").iterdir())
