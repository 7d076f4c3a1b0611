"""The tables of files and jobs, and what all tables have. Those of owners are in `tenancy_tables`.

Knows no queries; `server/db/migrations` makes the tables.

Every row has an owner. `number` counts up in the order of insertion, so that paging by it is stable
whatever clocks do; `id` is what users see. Times are Unix seconds.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite counts up only in a column of exactly this type.
Counter = BigInteger().with_variant(Integer(), "sqlite")
Name = String(64)
Label = String(256)  # what people call something


class TableBase(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class OwnedRow(TableBase):
    """A row of one owner, which users and API name by its `id`."""

    __abstract__ = True

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    id: Mapped[str] = mapped_column(Name, unique=True)
    owner: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    created_at: Mapped[int] = mapped_column(BigInteger)


class FileRow(OwnedRow):
    """An uploaded file; its bytes lie in the folder of files, under its id."""

    __tablename__ = "files"
    __table_args__ = (Index("ix_files_owner", "owner", "number"),)

    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(Name)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[int | None] = mapped_column(BigInteger)


class JobRow(OwnedRow):
    """A fine-tuning job. `server.jobs.queue.job_queue` alone changes it:

        queued  --claim-->  running                        attempt + 1, lease begins
        running --claim, lease over-->  running            attempt + 1: the old worker is refused
        running --claim, lease over too often-->  failed   it kills its workers
        running --finish / fail / stop-->  succeeded / failed / cancelled
        running --release-->  queued                       the worker shuts down
        queued  --cancel-->  cancelled
        running --cancel-->  running, cancel_requested     the worker stops; or the next claim does
        queued  --pause-->  paused
        running --pause-->  running, pause_requested       the worker saves it, and: park --> paused
        paused  --resume-->  queued
        paused  --cancel-->  cancelled

    `step` is the furthest ever reached, `lost_leases` counts those lost since it last grew.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_owner", "owner", "number"),
        Index("ix_jobs_owner_started", "owner", "started_at"),
        Index("ix_jobs_status", "status", "owner", "number"),  # what a claim reads
    )

    status: Mapped[str] = mapped_column(Name)
    model: Mapped[str] = mapped_column(Text)
    # No foreign keys: once a job has ended its files may be deleted, and it still names them.
    training_file: Mapped[str] = mapped_column(Name)
    validation_file: Mapped[str | None] = mapped_column(Name)
    suffix: Mapped[str | None] = mapped_column(Name)
    # Who made it, for the count of trained tokens.
    key: Mapped[str | None] = mapped_column(Name)
    user: Mapped[str | None] = mapped_column(Name)
    seed: Mapped[int] = mapped_column(BigInteger)
    hyperparameters: Mapped[str] = mapped_column(Text)
    labels: Mapped[dict[str, str]] = mapped_column("metadata", JSON)
    started_at: Mapped[float | None] = mapped_column(Double)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
    estimated_finish: Mapped[int | None] = mapped_column(BigInteger)
    fine_tuned_model: Mapped[str | None] = mapped_column(Text)
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(Text)
    cancel_requested: Mapped[bool] = mapped_column(Boolean)
    pause_requested: Mapped[bool] = mapped_column(Boolean, server_default=false())
    result_file: Mapped[str | None] = mapped_column(Name)
    plan: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    appraisal: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    judgement: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    samples: Mapped[list[dict[str, str]] | None] = mapped_column(JSON(none_as_null=True))
    attempt: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str | None] = mapped_column(Text)
    lease_s: Mapped[float | None] = mapped_column(Double)
    lease_until: Mapped[float | None] = mapped_column(Double)
    step: Mapped[int] = mapped_column(BigInteger)
    lost_leases: Mapped[int] = mapped_column("losses", Integer)


class LabelRow(TableBase):
    """One pair of a job's metadata, by which jobs are found."""

    __tablename__ = "labels"
    __table_args__ = (Index("ix_labels_key", "key", "value", "job"),)

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class EventRow(OwnedRow):
    """Something that happened in a job."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job", "job", "number"),)

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    level: Mapped[str] = mapped_column(Name)
    type: Mapped[str] = mapped_column(Name)
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class CheckpointRow(OwnedRow):
    """An adapter that a job published, with its metrics at that step."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_job", "job", "number"),)

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int] = mapped_column(BigInteger)
    model: Mapped[str] = mapped_column(Text)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
