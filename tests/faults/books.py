"""Which jobs were accepted, and whether each ended once, with its adapter intact or its reason."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from sqlalchemy import select
from torch import Tensor

from adapters_store.manifest import AdapterRef, parse_adapter_id
from server.db.tables import FileRow
from server.jobs.files.file_store import RESULTS
from server.jobs.queue.job import Event, Job, JobStatus
from server.jobs.queue.train_options import TrainOptions
from server.training.job.publish import JOB, STEP
from server.training.run.checkpoint import sweep
from tests.training.workplace import BASE, Workplace, lines

OPTIONS = TrainOptions(
    rank=4, n_epochs=3, batch_size=4, learning_rate=0.02, dropout=0.0, publish="always"
)
Kind = Literal["plain", "checkpoints", "early", "garbled", "cancelled"]
ORDER: tuple[tuple[str, Kind], ...] = (
    ("ann", "plain"),
    ("ann", "garbled"),
    ("ann", "checkpoints"),
    ("bob", "plain"),
    ("cat", "early"),
    ("cat", "cancelled"),
)
_OPTIONS: Mapping[Kind, TrainOptions] = {
    "plain": TrainOptions.from_json(OPTIONS.to_json()),
    "checkpoints": TrainOptions.from_json(
        json.dumps({**json.loads(OPTIONS.to_json()), "checkpoints": 2})
    ),
    "early": TrainOptions.from_json(
        json.dumps({**json.loads(OPTIONS.to_json()), "early_stopping": 2})
    ),
    "garbled": OPTIONS,
    "cancelled": OPTIONS,
}
ENDS = ("The job has successfully completed", "The job was cancelled", "The job failed: ")


class Broken(AssertionError):
    """A promise that was not kept."""


class Accepted(NamedTuple):
    """A job of which its owner was told that it is in the queue."""

    owner: str
    job: str
    kind: Kind


def submit(place: Workplace, owner: str, kind: Kind) -> Accepted:
    """As the API does: a file, then a job."""
    body = b'{"prompt": "x"}\n' * 10 if kind == "garbled" else lines(12)
    file = place.files.create(owner, "chats.jsonl", "fine-tune", io.BytesIO(body))
    job = place.queue.create(
        owner, BASE, file.id, suffix="pirate", seed=7, hyperparameters=_OPTIONS[kind]
    )
    if kind == "cancelled":
        place.queue.cancel(owner, job.id)
    return Accepted(owner, job.id, kind)


def unfinished(place: Workplace) -> int:
    """How many jobs have not ended."""
    counts = place.queue.counts()
    return sum(count for status, count in counts.items() if not status.ended)


def check(
    place: Workplace,
    accepted: list[Accepted],
    expected: Mapping[Kind, Mapping[str, Tensor]],
    may_fail: frozenset[str] = frozenset(),
    damaged: frozenset[str] = frozenset(),
) -> Counter[str]:
    """Hold the place to its promises; returns how many jobs ended how.

    Args:
        expected: what the good kinds learn when nothing happens.
        may_fail: codes with which a good job may end instead.
        damaged: uploads that are not what they were; a job of theirs may fail of that.

    Raises:
        Broken: with the job's events.
    """
    ends: Counter[str] = Counter()
    for entry in accepted:
        job = place.queue.get(entry.owner, entry.job)
        told = place.queue.events(entry.owner, entry.job, limit=1000).items[::-1]
        try:
            hurt = {"training_failed"} if job.training_file in damaged else set()
            _check_end(entry, job, told, may_fail | hurt)
            _check_versions(place, job)
            if job.status == JobStatus.SUCCEEDED:
                _check_adapter(place, job, expected[entry.kind])
            _check_results(place, job)
        except Exception as error:
            story = "\n".join(f"  {event.level} {event.message}" for event in told)
            raise Broken(f"{entry}: {error!r}\n{job}\n{story}") from error
        ends[job.error.code if job.error else job.status.value] += 1
    _check_nothing_else(place, accepted, damaged)
    return ends


def _check_end(
    entry: Accepted, job: Job, told: tuple[Event, ...], may_fail: frozenset[str]
) -> None:
    assert job.status.ended, "it never ended"
    ends = [event for event in told if event.message.startswith(ENDS)]
    assert ends == [told[-1]], "it did not end once, last of all"
    code = job.error.code if job.error else job.status.value
    wanted = {"garbled": "invalid_request", "cancelled": "cancelled"}.get(entry.kind, "succeeded")
    assert code == wanted or code in may_fail, f"it ended as {code}"
    assert (job.fine_tuned_model is not None) == (job.status == JobStatus.SUCCEEDED)
    if job.error:
        assert job.error.message and job.error.message in told[-1].message


def _check_versions(place: Workplace, job: Job) -> None:
    """One version of the result if it succeeded, one of each checkpoint told of, and no other."""
    found: Counter[str | None] = Counter()
    named: dict[str | None, str] = {}
    for version in place.store.versions(job.owner, "pirate"):
        ref = AdapterRef(job.owner, "pirate", version)
        manifest, _, _ = place.store.load(ref)
        if manifest.provenance[JOB] == job.id:
            step = manifest.provenance.get(STEP)
            found[step] += 1
            named[step] = str(ref)
    assert all(count == 1 for count in found.values()), f"published twice: {found}"
    # A worker may die between publishing and saying so, and the owner cancel the job before the
    # next one has seen it.
    if job.status != JobStatus.CANCELLED:
        assert (None in found) == (job.status == JobStatus.SUCCEEDED), f"versions {found}"
    told = place.queue.checkpoints(job.owner, job.id, limit=100).items
    models = [checkpoint.model for checkpoint in told]
    assert len(set(models)) == len(models), "a checkpoint was told of twice"
    assert set(models) <= set(named.values())
    if job.status == JobStatus.SUCCEEDED:
        assert job.fine_tuned_model == named[None] == models[0]
        assert set(models) == set(named.values()), "a checkpoint was never told of"


def _check_adapter(place: Workplace, job: Job, expected: Mapping[str, Tensor]) -> None:
    ref = place.store.resolve(job.owner, *parse_adapter_id(str(job.fine_tuned_model)))
    _, tensors, _ = place.store.load(ref)
    assert tensors.keys() == expected.keys()
    for key, tensor in tensors.items():  # sums in company have another order
        torch.testing.assert_close(tensor, expected[key], rtol=2e-3, atol=2e-5)


def _check_results(place: Workplace, job: Job) -> None:
    name = f"step_metrics-{job.id}.csv"
    files = place.files.list(job.owner, purpose=RESULTS).items
    mine = [file.id for file in files if file.filename == name]
    assert len(mine) <= 1, "two files of figures"
    if job.result_file is None:
        return
    assert mine == [job.result_file]
    with place.files.verified(job.owner, job.result_file) as file:
        steps = [int(line.split(b",")[0]) for line in file.read().splitlines()[1:]]
    assert steps == sorted(set(steps)), f"figures of steps {steps}"


def _check_nothing_else(
    place: Workplace, accepted: list[Accepted], damaged: frozenset[str]
) -> None:
    """Nobody else's versions, and nothing left lying about once what crashed was swept."""
    jobs = {entry.job for entry in accepted}
    for owner in place.store.owners():
        for version in place.store.versions(owner, "pirate"):
            told = place.store.open(AdapterRef(owner, "pirate", version)).manifest.provenance
            assert told[JOB] in jobs, f"{owner} has a version of {told[JOB]}"
    place.store.sweep()
    sweep(place.home / "jobs", older_than_s=-1, keep=place.queue.unfinished())
    left = [
        path
        for folder in ("adapters/.staging", "adapters/.trash", "jobs")
        for path in _entries(place.home / folder)
    ]
    assert not left, f"left behind: {left}"
    with place.database.reading() as session:
        rows = {row.id: row.owner for row in session.scalars(select(FileRow))}
    for file_id in rows.keys() - damaged:
        with place.files.verified(rows[file_id], file_id):
            pass


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
