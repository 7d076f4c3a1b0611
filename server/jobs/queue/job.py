"""A fine-tuning job as others see it. Knows no database queries."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Literal, cast

from server.db.tables import CheckpointRow, EventRow, JobRow
from server.jobs.queue.evaluation import Evaluation, Sample
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.train_options import TrainOptions
from server.jobs.queue.training_metrics import TrainingMetrics

Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]
StopRequest = Literal["cancel", "pause"]
"""What a running job's owner has asked its worker to do with it."""


class JobStatus(StrEnum):
    """Where a job stands, in the OpenAI API's words."""

    VALIDATING_FILES = "validating_files"
    """Its files are being checked. Ours are checked before the job exists, so no job stays here."""
    QUEUED = "queued"
    """It waits for a worker, for the first time or again."""
    PAUSED = "paused"
    """Its owner paused it; `resume` queues it again, and it continues where it was."""
    RUNNING = "running"
    """A worker has its lease, or had it and died; then the next claim takes the job over."""
    SUCCEEDED = "succeeded"
    """Its adapter is published. It never changes again."""
    FAILED = "failed"
    """It ended without an adapter; the error says why. It never changes again."""
    CANCELLED = "cancelled"
    """Its owner cancelled it. It never changes again."""

    @property
    def ended(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


UNFINISHED = tuple(status.value for status in JobStatus if not status.ended)


@dataclass(frozen=True)
class JobError:
    """Why a job failed: `code` in one word, `param` the field of the request at fault."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class Job:
    """One job at one moment. Times are Unix seconds.

    `attempt` counts the claims. A worker's Job is of its own attempt, and the queue refuses it with
    LeaseLost once there is a later one.
    """

    id: str
    owner: str
    status: JobStatus
    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    hyperparameters: TrainOptions
    metadata: Mapping[str, str]
    created_at: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    trained_tokens: int | None
    error: JobError | None
    cancel_requested: bool
    pause_requested: bool
    attempt: int
    worker: str | None
    step: int
    result_file: str | None
    plan: Mapping[str, object] | None
    """Every option as it is used. None: no worker has read the job's files yet."""
    estimate: JobEstimate | None
    evaluation: Evaluation | None
    samples: tuple[Sample, ...] | None
    """None: not made yet. Empty: none could be made."""

    @property
    def stop_request(self) -> StopRequest | None:
        """What its owner has asked its worker to do."""
        if self.cancel_requested:
            return "cancel"
        return "pause" if self.pause_requested else None

    @classmethod
    def from_row(cls, row: JobRow) -> "Job":
        columns = {field.name: getattr(row, field.name, None) for field in fields(cls)}
        values: dict[str, Any] = columns | {
            "status": JobStatus(row.status),
            "hyperparameters": TrainOptions.from_json(row.hyperparameters),
            "metadata": row.labels,
            "started_at": None if row.started_at is None else int(row.started_at),
            "error": row.error_code
            and JobError(row.error_code, row.error_message or "", row.error_param),
            "estimate": row.appraisal and JobEstimate(**row.appraisal),
            "evaluation": row.judgement and Evaluation(**row.judgement),
            "samples": None if row.samples is None else tuple(Sample(**one) for one in row.samples),
        }
        return cls(**values)


@dataclass(frozen=True)
class Event:
    """Something that happened in a job. `data` is the JSON of metrics, or of a sample."""

    id: str
    job: str
    created_at: int
    level: Level
    type: EventType
    message: str
    data: Mapping[str, object] | None
    number: int
    """Counts up, over all jobs."""

    @classmethod
    def from_row(cls, row: EventRow) -> "Event":
        level, kind = cast(Level, row.level), cast(EventType, row.type)
        return cls(row.id, row.job, row.created_at, level, kind, row.message, row.data, row.number)


@dataclass(frozen=True)
class Checkpoint:
    """An adapter that a job published, with its metrics at that step."""

    id: str
    job: str
    created_at: int
    step: int
    model: str
    metrics: TrainingMetrics

    @classmethod
    def from_row(cls, row: CheckpointRow) -> "Checkpoint":
        metrics = TrainingMetrics.from_document(row.metrics)
        return cls(row.id, row.job, row.created_at, row.step, row.model, metrics)
