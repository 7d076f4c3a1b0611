"""The durable queue: who may train what, and how far it is. Knows no training.

A worker claims a job for a lease and beats to keep it. When the lease runs out the next claim takes
the job over with a higher `attempt`, and from then on everything that the old worker says is
refused (LeaseLost), in the same transaction that would have written it.

Leases are kept by one clock (see `Database.now`). If it jumps ahead, a living worker may lose its
job, which goes on from its last checkpoint; if it jumps back, a dead worker's job waits at most one
more lease. Neither can make a job end twice, or never.
"""

import secrets
from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from adapters_store.errors import InvalidName
from adapters_store.manifest import check_name
from server.db.session import Database, ensure_owner
from server.db.tables import CheckpointRow, EventRow, FileRow, JobRow
from server.errors import Conflict, InvalidRequest, NotFound
from server.jobs import rows
from server.jobs.job import (
    Checkpoint,
    Event,
    EventType,
    Figures,
    Job,
    JobError,
    JobStatus,
    Level,
)
from server.jobs.options import TrainOptions
from server.jobs.rows import Page
from server.jobs.transitions import end, fail, finite, hold, take_next, tell, tidy

__all__ = ["Checkpoint", "Event", "Job", "JobError", "JobQueue", "JobStatus", "Page"]


class JobQueue:
    """The jobs of all owners."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        owner: str,
        model: str,
        training_file: str,
        validation_file: str | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        hyperparameters: TrainOptions | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Job:
        """Queue a job whose files were checked before.

        Args:
            seed: None: the options' seed, or else a random one.

        Raises:
            InvalidRequest: a value is off, or a file is not one of the owner's; `param` names it.
        """
        labels = _checked_metadata(metadata or {})
        if suffix is not None:
            _check_suffix(suffix)
        options = hyperparameters or TrainOptions()
        seed = options.seed if seed is None else TrainOptions(seed=seed).seed
        with self._database.transaction() as session:
            now = self._database.now(session)
            ensure_owner(session, owner, now)
            _require_file(session, owner, training_file, "training_file")
            if validation_file is not None:
                _require_file(session, owner, validation_file, "validation_file")
            row = JobRow(
                id=f"ftjob-{secrets.token_hex(12)}",
                owner=owner,
                status=JobStatus.QUEUED,
                model=model,
                training_file=training_file,
                validation_file=validation_file,
                suffix=suffix,
                seed=secrets.randbelow(2**31) if seed is None else seed,
                hyperparameters=options.to_json(),
                labels=labels,
                created_at=int(now),
                cancel_requested=False,
                attempt=0,
                step=0,
                losses=0,
            )
            session.add(row)
            session.flush()
            tell(session, row, now, "info", f"Created fine-tuning job: {row.id}")
            tell(session, row, now, "info", "Files validated; the job waits for a worker")
            return Job.from_row(row)

    def get(self, owner: str, job_id: str) -> Job:
        """One job. Raises NotFound."""
        with self._database.reading() as session:
            return Job.from_row(_find(session, owner, job_id))

    def list(self, owner: str, after: str | None = None, limit: int = 20) -> Page[Job]:
        """The owner's jobs, the newest first. Raises InvalidRequest."""
        with self._database.reading() as session:
            where = [JobRow.owner == owner]
            found, more = rows.page(session, JobRow, where, after=after, limit=limit)
            return Page(tuple(map(Job.from_row, found)), more)

    def events(
        self, owner: str, job_id: str, after: str | None = None, limit: int = 20
    ) -> Page[Event]:
        """What a job told, the newest first. Raises NotFound or InvalidRequest."""
        with self._database.reading() as session:
            where = [EventRow.job == _find(session, owner, job_id).id]
            found, more = rows.page(session, EventRow, where, after=after, limit=limit)
            return Page(tuple(map(Event.from_row, found)), more)

    def checkpoints(
        self, owner: str, job_id: str, after: str | None = None, limit: int = 10
    ) -> Page[Checkpoint]:
        """What a job published on its way, the newest first. Raises NotFound or InvalidRequest."""
        with self._database.reading() as session:
            where = [CheckpointRow.job == _find(session, owner, job_id).id]
            found, more = rows.page(session, CheckpointRow, where, after=after, limit=limit)
            return Page(tuple(map(Checkpoint.from_row, found)), more)

    def counts(self) -> dict[JobStatus, int]:
        """How many jobs stand where, of all owners."""
        with self._database.reading() as session:
            query = select(JobRow.status, func.count()).group_by(JobRow.status)
            found = {JobStatus(status): count for status, count in session.execute(query)}
        return {status: found.get(status, 0) for status in JobStatus}

    def cancel(self, owner: str, job_id: str) -> Job:
        """Cancel a job that has not ended. One that runs is cancelled once its worker obeys.

        Raises:
            NotFound: there is none.
            Conflict: it has ended.
        """
        with self._database.transaction() as session:
            row = _known(rows.find_held(session, JobRow, owner, job_id), job_id)
            now = self._database.now(session)
            if JobStatus(row.status).ended:
                raise Conflict(f"job {job_id!r} has {row.status} already")
            if row.status == JobStatus.QUEUED or (row.lease_until or 0) < now:
                end(session, row, now, JobStatus.CANCELLED, "The job was cancelled")
            elif not row.cancel_requested:
                row.cancel_requested = True
                tell(session, row, now, "info", "Cancelling: the worker was asked to stop")
            return Job.from_row(row)

    def claim(self, worker: str, lease_s: float) -> Job | None:
        """Take the job that is next, or None; no other worker gets it while the lease lasts.

        First come jobs whose worker was lost; then those of the owner with the fewest running jobs,
        among such of the owner whose last start is longest ago; then the oldest.
        """
        with self._database.transaction() as session:
            now = self._database.now(session)
            tidy(session, now)
            row = take_next(session, worker, lease_s, now)
            if row is None:
                return None
            again = f", attempt {row.attempt}" if row.attempt > 1 else ""
            tell(session, row, now, "info", f"Fine-tuning job started{again}")
            return Job.from_row(row)

    def heartbeat(
        self,
        job: Job,
        *,
        step: int | None = None,
        estimated_finish: int | None = None,
        trained_tokens: int | None = None,
    ) -> bool:
        """Keep the lease, and tell how far the job is. True: its owner wants it cancelled.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        with self._database.transaction() as session:
            row = hold(session, job)
            row.lease_until = self._database.now(session) + (row.lease_s or 0)
            if step is not None and step > row.step:
                row.step, row.losses = step, 0
            if estimated_finish is not None:
                row.estimated_finish = estimated_finish
            if trained_tokens is not None:
                row.trained_tokens = trained_tokens
            return row.cancel_requested

    def append_event(
        self,
        job: Job,
        level: Level,
        message: str,
        type: EventType = "message",
        data: Figures | None = None,
    ) -> None:
        """Tell something about a job; figures that are not finite become null. Raises LeaseLost."""
        with self._database.transaction() as session:
            row = hold(session, job)
            tell(session, row, self._database.now(session), level, message, type, data)

    def add_checkpoint(self, job: Job, step: int, model: str, metrics: Figures) -> Checkpoint:
        """Record an adapter published on the way, under the id `model`. Raises LeaseLost."""
        with self._database.transaction() as session:
            row = hold(session, job)
            checkpoint = CheckpointRow(
                id=f"ftckpt_{secrets.token_hex(12)}",
                owner=row.owner,
                job=row.id,
                created_at=int(self._database.now(session)),
                step=step,
                model=model,
                metrics=finite(metrics),
            )
            session.add(checkpoint)
            session.flush()
            return Checkpoint.from_row(checkpoint)

    def release(self, job: Job) -> None:
        """Give a job back, as its worker shuts down; the next claim goes on. Raises LeaseLost."""
        with self._database.transaction() as session:
            row = hold(session, job)
            now = self._database.now(session)
            if row.cancel_requested:
                end(session, row, now, JobStatus.CANCELLED, "The job was cancelled")
                return
            row.status, row.worker, row.lease_until = JobStatus.QUEUED, None, None
            row.estimated_finish = None
            tell(session, row, now, "info", "The worker shut down; the job waits for another")

    def finish(self, job: Job, fine_tuned_model: str, trained_tokens: int) -> Job:
        """End a job whose adapter is published as `fine_tuned_model`. Raises LeaseLost."""
        with self._database.transaction() as session:
            row = hold(session, job)
            now = self._database.now(session)
            row.fine_tuned_model, row.trained_tokens = fine_tuned_model, trained_tokens
            tell(session, row, now, "info", f"New fine-tuned model created: {fine_tuned_model}")
            message = "The job has successfully completed"
            return end(session, row, now, JobStatus.SUCCEEDED, message)

    def fail(self, job: Job, code: str, message: str, param: str | None = None) -> Job:
        """End a job without an adapter. Raises LeaseLost."""
        with self._database.transaction() as session:
            row = hold(session, job)
            return fail(session, row, self._database.now(session), code, message, param)

    def stop(self, job: Job) -> Job:
        """End a running job as cancelled, as `heartbeat` asked. Raises LeaseLost."""
        with self._database.transaction() as session:
            row = hold(session, job)
            now = self._database.now(session)
            return end(session, row, now, JobStatus.CANCELLED, "The job was cancelled")


def _find(session: Session, owner: str, job_id: str) -> JobRow:
    return _known(rows.find(session, JobRow, owner, job_id), job_id)


def _known(row: JobRow | None, job_id: str) -> JobRow:
    if row is None:
        raise NotFound(f"there is no fine-tuning job {job_id!r}")
    return row


def _require_file(session: Session, owner: str, file_id: str, param: str) -> None:
    row = rows.find_held(session, FileRow, owner, file_id)  # a deletion must not cross us
    if row is None:
        raise InvalidRequest(f"there is no file {file_id!r}; upload it first", param=param)
    if row.purpose != "fine-tune":
        raise InvalidRequest(
            f"file {file_id!r} is for {row.purpose!r} and not for 'fine-tune'", param=param
        )


def _check_suffix(suffix: str) -> None:
    try:
        check_name("suffix", suffix)
    except InvalidName as error:
        raise InvalidRequest(str(error), param="suffix") from error


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The OpenAI API's limits: 16 pairs, keys of 64 characters, values of 512."""
    if len(metadata) > 16:
        raise InvalidRequest(f"{len(metadata)} pairs of metadata; at most 16", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512 or not key.isprintable():
            raise InvalidRequest(
                f"metadata {key[:64]!r} has more than 64 characters, or its value more than 512",
                param="metadata",
            )
    return dict(metadata)
