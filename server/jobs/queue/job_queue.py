"""The durable queue of jobs: create, list, cancel, pause and resume them. Knows no trainer."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.db.audit_trail import record
from server.db.session import ACTIVE_OWNER, ensure_owner
from server.db.tables import CheckpointRow, EventRow, JobRow, LabelRow
from server.db.tenancy_tables import OwnerRow
from server.errors import Conflict, NotFound
from server.jobs import rows
from server.jobs.queue.claims import Claims
from server.jobs.queue.job import UNFINISHED, Checkpoint, Event, EventType, Job, JobStatus
from server.jobs.queue.job_curve import Curve, Metrics, newest_metrics, read_curve
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.new_job import (
    UNTOUCHED,
    check_metadata,
    check_suffix,
    enqueue,
    require_files,
)
from server.jobs.queue.quotas import Kept, adapter_name, kept_of
from server.jobs.queue.train_options import TrainOptions
from server.jobs.queue.transitions import JobChange
from server.jobs.rows import Page

_TIMED_JOBS = 20
_AT_ONCE = 100  # jobs that one transaction changes


@dataclass(frozen=True)
class News:
    """Whether a job has ended, and the number of its last event."""

    ended: bool
    last_event: int


class JobQueue(Claims):
    """The jobs of all owners. Owners' actions are here, workers' in `Claims`."""

    def check(
        self,
        owner: str,
        training_file: str,
        validation_file: str | None = None,
        *,
        suffix: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Raise what `create` would raise of these, for a dry run and before files are read."""
        check_metadata(metadata or {})
        if suffix is not None:
            check_suffix(suffix)
        with self._database.reading() as session:
            now = self._database.now(session)
            require_files(session, owner, training_file, validation_file, now)

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
        estimate: JobEstimate | None = None,
        notice: str = "",
    ) -> Job:
        """Queue a job whose files were checked, with what `estimate` and `notice` say as events.

        Args:
            seed: None: the options' seed, or else a random one.

        Raises:
            InvalidRequest: a value is invalid, or a file is not the owner's; `param` names it.
            QuotaExceeded: the owner may not train that now, or keep what it makes.
        """
        labels = check_metadata(metadata or {})
        if suffix is not None:
            check_suffix(suffix)
        options = hyperparameters or TrainOptions()
        seed = options.seed if seed is None else TrainOptions(seed=seed).seed
        row = JobRow(
            **UNTOUCHED,
            id=f"ftjob-{secrets.token_hex(12)}",
            owner=owner,
            model=model,
            training_file=training_file,
            validation_file=validation_file,
            suffix=suffix,
            seed=secrets.randbelow(2**31) if seed is None else seed,
            hyperparameters=options.to_json(),
            labels=labels,
            appraisal=estimate and estimate.to_document(),
        )
        with self._database.transaction() as session:
            now = self._database.now(session)
            self._admit(session, row, estimate, now)
            return enqueue(session, row, now, estimate, notice)

    def _admit(
        self, session: Session, row: JobRow, estimate: JobEstimate | None, now: float
    ) -> None:
        """Raise what `create` raises of the owner's files and quotas."""
        ensure_owner(session, row.owner, now)
        # Locked: they must not be deleted meanwhile.
        require_files(session, row.owner, row.training_file, row.validation_file, now, lock=True)
        name = adapter_name(row.suffix, row.id)
        tokens = estimate.trained_tokens if estimate else 0
        size = estimate.adapter_bytes if estimate else 0
        self._quotas.check_job(session, row.owner, name, tokens, size, now)

    def get(self, owner: str, job_id: str) -> Job:
        """One job. Raises NotFound."""
        with self._database.reading() as session:
            return Job.from_row(_find(session, owner, job_id))

    def list(
        self,
        owner: str,
        after: str | None = None,
        limit: int = 20,
        *,
        metadata: Mapping[str, str] | None = None,
        status: JobStatus | None = None,
        models: Sequence[str] | None = None,
    ) -> Page[Job]:
        """The owner's jobs, the newest first. Raises InvalidRequest.

        Args:
            metadata: only those that have all these pairs; none: those that have no pair at all.
            status: only those with this status.
            models: only those that continue from one of these.
        """
        pairs = None if metadata is None else check_metadata(metadata)
        with self._database.reading() as session:
            where = [JobRow.owner == owner, *_labelled(pairs)]
            if status is not None:
                where.append(JobRow.status == status.value)
            if models is not None:
                where.append(JobRow.model.in_(models))
            return rows.page(session, JobRow, Job.from_row, where, after, limit)

    def events(
        self,
        owner: str,
        job_id: str,
        after: str | None = None,
        limit: int = 20,
        *,
        kind: EventType | None = None,
        newest_first: bool = True,
    ) -> Page[Event]:
        """A job's events, by default the newest first, or those of one kind. Raises NotFound or
        InvalidRequest."""
        with self._database.reading() as session:
            where = [EventRow.job == _find(session, owner, job_id).id]
            if kind is not None:
                where.append(EventRow.type == kind)
            return rows.page(
                session, EventRow, Event.from_row, where, after, limit, newest_first=newest_first
            )

    def curve(self, owner: str, job_id: str, most: int) -> Curve:
        """A job's metrics, at most about `most` of them. Raises NotFound."""
        with self._database.reading() as session:
            return read_curve(session, _find(session, owner, job_id).id, most)

    def newest_metrics(self, jobs: Iterable[Job]) -> dict[str, Metrics]:
        """The last metrics of each of these jobs by its id; those without any are left out."""
        with self._database.reading() as session:
            return newest_metrics(session, [job.id for job in jobs])

    def news(self, jobs: Iterable[str]) -> dict[str, News]:
        """What is new of jobs of any owner, in two queries for all of them; without those that do
        not exist. If a job has ended, its last event is among its events."""
        ids = [*jobs]
        ended = [status.value for status in JobStatus if status.ended]
        of_jobs = select(JobRow.id, JobRow.status.in_(ended)).where(JobRow.id.in_(ids))
        last = select(EventRow.job, func.max(EventRow.number)).where(EventRow.job.in_(ids))
        with self._database.reading() as session:
            states = session.execute(of_jobs).all()  # first: then the events are as new, or newer
            numbers = {job: number for job, number in session.execute(last.group_by(EventRow.job))}
        return {job: News(bool(ended), numbers.get(job, 0)) for job, ended in states}

    def events_after(self, job_id: str, number: int, limit: int) -> Sequence[Event]:
        """Events of a job of any owner, oldest first, that follow the event `number`."""
        query = (
            select(EventRow)
            .where(EventRow.job == job_id, EventRow.number > number)
            .order_by(EventRow.number)
            .limit(limit)
        )
        with self._database.reading() as session:
            return tuple(map(Event.from_row, session.scalars(query)))

    def checkpoints(
        self, owner: str, job_id: str, after: str | None = None, limit: int = 10
    ) -> Page[Checkpoint]:
        """What a job has published, the newest first. Raises NotFound or InvalidRequest."""
        with self._database.reading() as session:
            where = [CheckpointRow.job == _find(session, owner, job_id).id]
            return rows.page(session, CheckpointRow, Checkpoint.from_row, where, after, limit)

    def unfinished(self) -> set[str]:
        """The ids of all owners' jobs that have not ended."""
        with self._database.reading() as session:
            return set(session.scalars(select(JobRow.id).where(JobRow.status.in_(UNFINISHED))))

    def speed(self) -> float | None:
        """Trained tokens per second of the last jobs that succeeded: the median, for one that was
        paused or taken over says little."""
        query = (
            select(JobRow.trained_tokens, JobRow.started_at, JobRow.finished_at)
            .where(JobRow.status == JobStatus.SUCCEEDED.value)
            .order_by(JobRow.number.desc())
            .limit(_TIMED_JOBS)
        )
        with self._database.reading() as session:
            finished_jobs = session.execute(query).all()
        speeds = [
            tokens / (finish - start)
            for tokens, start, finish in finished_jobs
            if tokens and start and finish and finish > start
        ]
        return median(speeds) if speeds else None

    def kept(self, owner: str) -> Kept:
        """What counts against an owner's quotas, its files too."""
        with self._database.reading() as session:
            return kept_of(session, owner, self._database.now(session))

    def training(self, owner: str | None, limit: int) -> Sequence[Job]:
        """Jobs of an owner, or (None) of all, that are running, the newest first."""
        running = select(JobRow).where(JobRow.status == JobStatus.RUNNING.value)
        query = running if owner is None else running.where(JobRow.owner == owner)
        with self._database.reading() as session:
            found = session.scalars(query.order_by(JobRow.number.desc()).limit(limit))
            return [*map(Job.from_row, found)]

    def count_of(self, owner: str) -> int:
        """How many jobs an owner has."""
        with self._database.reading() as session:
            return rows.count(session, JobRow, owner)

    def counts(self) -> dict[JobStatus, int]:
        """The number of jobs of all owners, by status."""
        with self._database.reading() as session:
            query = select(JobRow.status, func.count()).group_by(JobRow.status)
            counts = {JobStatus(status): count for status, count in session.execute(query)}
        return {status: counts.get(status, 0) for status in JobStatus}

    def cancel(self, owner: str, job_id: str) -> Job:
        """Cancel a job that has not ended. A running one is cancelled once its worker has stopped.

        Raises:
            NotFound: there is none.
            Conflict: it has ended.
        """
        with self._owned(owner, job_id, "job.cancelled") as change:
            row = change.row
            if JobStatus(row.status).ended:
                raise Conflict(f"job {job_id!r} is already {row.status}; it cannot be cancelled")
            return _cancel(change)

    def cancel_of_inactive_owners(self) -> int:
        """Cancel jobs of owners that are not active: their keys are refused, so that nobody else
        can. Returns how many: there may be more unless it is none."""
        inactive = JobRow.owner.in_(select(OwnerRow.id).where(OwnerRow.status != ACTIVE_OWNER))
        unfinished = JobRow.status.in_(UNFINISHED)
        with self._database.transaction() as session:
            now = self._database.now(session)
            stopping = JobRow.cancel_requested & (func.coalesce(JobRow.lease_until, 0.0) >= now)
            query = select(JobRow).where(unfinished, inactive, ~stopping).limit(_AT_ONCE)
            found = session.scalars(query.with_for_update()).all()
            for row in found:
                _cancel(JobChange(session, row, now))
        return len(found)

    def pause(self, owner: str, job_id: str) -> Job:
        """Pause a job. A running one is paused once its worker has saved it.

        Raises:
            NotFound: there is none.
            Conflict: it has ended, or is about to be cancelled.
        """
        with self._owned(owner, job_id, "job.paused") as change:
            row = change.row
            if JobStatus(row.status).ended or row.cancel_requested:
                state = "is being cancelled" if row.cancel_requested else f"is already {row.status}"
                raise Conflict(f"job {job_id!r} {state}; it cannot be paused")
            if row.status == JobStatus.PAUSED or row.pause_requested:
                return Job.from_row(row)
            row.pause_requested = True
            if not _has_worker(row, change.now):
                return change.requeue_or_pause("")
            change.add_event("info", "Pausing: the worker was asked to save the job")
            return Job.from_row(row)

    def resume(self, owner: str, job_id: str) -> Job:
        """Queue a paused job again, or take back a pause that its worker does not know of yet.

        Raises:
            NotFound: there is none.
            Conflict: it is not paused.
        """
        with self._owned(owner, job_id, "job.resumed") as change:
            row = change.row
            if row.status != JobStatus.PAUSED and not row.pause_requested:
                raise Conflict(f"job {job_id!r} is {row.status}; only a paused job can be resumed")
            if row.status == JobStatus.PAUSED:
                row.status = JobStatus.QUEUED
            row.pause_requested = False
            change.add_event("info", "The job was resumed")
            return Job.from_row(row)

    @contextmanager
    def _owned(self, owner: str, job_id: str, action: str) -> Iterator[JobChange]:
        """Change an owner's job, and record that as `action`. Raises NotFound."""
        with self._database.transaction() as session:
            row, now = _find(session, owner, job_id, lock=True), self._database.now(session)
            before = {"status": row.status}
            yield JobChange(session, row, now)
            after = {"status": row.status}
            record(session, now, action, row.id, owner=owner, before=before, after=after)


def _find(session: Session, owner: str, job_id: str, *, lock: bool = False) -> JobRow:
    row = rows.find(session, JobRow, owner, job_id, lock=lock)
    if row is None:
        raise NotFound(f"there is no fine-tuning job {shown(job_id)}")
    return row


def _cancel(change: JobChange) -> Job:
    row = change.row
    if not _has_worker(row, change.now):
        return change.cancel()
    if not row.cancel_requested:
        row.cancel_requested = True
        change.add_event("info", "Cancelling: the worker was asked to stop")
    return Job.from_row(row)


def _has_worker(row: JobRow, now: float) -> bool:
    """Whether a worker that may still be alive has it."""
    return row.status == JobStatus.RUNNING and (row.lease_until or 0) >= now


def _labelled(metadata: Mapping[str, str] | None) -> list[ColumnElement[bool]]:
    if metadata is None:
        return []
    mine = LabelRow.job == JobRow.id
    if not metadata:
        return [~exists().where(mine)]
    return [
        exists().where(mine, LabelRow.key == key, LabelRow.value == value)
        for key, value in metadata.items()
    ]
