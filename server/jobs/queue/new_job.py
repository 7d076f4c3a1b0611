"""A new job: what it may be made of, and how it enters the queue."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy.orm import Session

from adapters_store.manifest import check_name
from adapters_store.outside_values import shown
from adapters_store.store_errors import InvalidName
from server.control_characters import has_control
from server.db.audit_trail import acting, record
from server.db.tables import JobRow, LabelRow
from server.errors import InvalidRequest
from server.jobs import rows
from server.jobs.queue.job import Job, JobStatus
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.transitions import JobChange

UNTOUCHED: Final[Mapping[str, object]] = {
    "status": JobStatus.QUEUED,
    "cancel_requested": False,
    "pause_requested": False,
    "attempt": 0,
    "step": 0,
    "lost_leases": 0,
}
"""The columns of a job that nobody has claimed yet."""


def enqueue(
    session: Session, row: JobRow, now: float, estimate: JobEstimate | None, notice: str
) -> Job:
    """Add the row of a job that was checked, and its first events."""
    row.key, row.user, row.created_at = acting().key, acting().user, int(now)
    session.add(row)
    session.flush()
    session.add_all(LabelRow(job=row.id, key=k, value=v) for k, v in row.labels.items())
    made = {"model": row.model, "training_file": row.training_file, "suffix": row.suffix}
    record(session, now, "job.created", row.id, owner=row.owner, after=made)
    change = JobChange(session, row, now)
    change.add_event("info", f"Created fine-tuning job: {row.id}")
    for warning in estimate.warnings if estimate else ():
        change.add_event("warn", warning)
    if estimate:
        change.add_event("info", estimate.sentence())
    change.add_event("info", "Files validated; the job waits for a worker")
    if notice:
        change.add_event("warn", notice)
    return Job.from_row(row)


def require_files(
    session: Session,
    owner: str,
    training_file: str,
    validation_file: str | None,
    now: float,
    *,
    lock: bool = False,
) -> None:
    """Raise InvalidRequest unless the owner has these files, for training."""
    files = ("training_file", training_file), ("validation_file", validation_file)
    for param, file_id in files:
        if file_id is None:
            continue
        row = rows.find_file(session, owner, file_id, now, lock=lock)
        if row is None:
            raise InvalidRequest(f"there is no file {shown(file_id)}; upload it first", param=param)
        if row.purpose != "fine-tune":
            raise InvalidRequest(
                f"file {file_id!r} is for {row.purpose!r} and not for 'fine-tune'", param=param
            )


def check_suffix(suffix: str) -> None:
    """Raise InvalidRequest unless an adapter may have this name."""
    try:
        check_name("suffix", suffix)
    except InvalidName as error:
        raise InvalidRequest(str(error), param="suffix") from error


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The OpenAI API's limits: 16 pairs, keys of 64 characters, values of 512."""
    if len(metadata) > 16:
        raise InvalidRequest(
            f"{len(metadata)} pairs of metadata: give at most 16", param="metadata"
        )
    for key, value in metadata.items():
        # PostgreSQL refuses NUL.
        if len(key) > 64 or len(value) > 512 or has_control(key) or "\0" in value:
            raise InvalidRequest(
                f"metadata {shown(key)} has more than 64 characters or a control character, or its "
                "value has more than 512 or NUL: shorten it",
                param="metadata",
            )
    return dict(metadata)
