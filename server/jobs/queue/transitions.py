"""The changes of a job's row, with their events, each in its caller's transaction."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    Text,
    bindparam,
    case,
    exists,
    func,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from server.db.owner_limits import Limits, limits_of
from server.db.tables import EventRow, JobRow
from server.db.tenancy_tables import LimitRow, OwnerRow
from server.jobs.queue.job import EventType, Job, JobStatus, Level

MAX_LOST_LEASES = 5
"""Leases lost in a row at the same step, after which a job is taken to kill its workers."""
SUSPECT_LOST_LEASES = 2
"""Leases lost in a row after which a job is trained alone: it may kill its workers."""
_CLOCK_SLACK_S = 1.0

# The statements of a claim are built once: workers repeat them for as long as they wait.
_NOW = bindparam("at", type_=Double)
_LEASE = bindparam("lease", type_=Double)
_RUNNING = JobRow.status == JobStatus.RUNNING.value
_BUSY = bindparam("busy", type_=Boolean)
_WORKER = bindparam("by", type_=Text)
# A busy worker is alive: its own jobs only look lost, because a clock jumped ahead.
_LOST = _RUNNING & (JobRow.lease_until < _NOW) & or_(not_(_BUSY), JobRow.worker != _WORKER)

_SHORTEN_LEASES = (
    update(JobRow)
    .where(_RUNNING, JobRow.lease_until > _NOW + JobRow.lease_s + _CLOCK_SLACK_S)
    .values(lease_until=_NOW + JobRow.lease_s)
)
_LOST_FOR_GOOD = (
    select(JobRow)
    .where(
        _LOST,
        or_(JobRow.cancel_requested, JobRow.pause_requested, JobRow.lost_leases >= MAX_LOST_LEASES),
    )
    .with_for_update(skip_locked=True)  # SQLite's transaction locks everything anyway
)
_LOST_IN_SILENCE = (
    select(JobRow).where(_LOST, JobRow.lease_until > 0).with_for_update(skip_locked=True)
)
_other = aliased(JobRow)
_OWNERS_RUNNING = (
    select(func.count())
    .where(_other.owner == JobRow.owner, _other.status == JobStatus.RUNNING.value)
    .correlate(JobRow)
    .scalar_subquery()
)
# Without starts in the future: a clock that was set back has left them there.
_OWNERS_LAST_START = (
    select(func.coalesce(func.max(_other.started_at), 0.0))
    .where(_other.owner == JobRow.owner, _other.started_at <= _NOW)
    .correlate(JobRow)
    .scalar_subquery()
)
_OWN_RUNNING = select(LimitRow.running_jobs).where(LimitRow.owner == JobRow.owner)
_MOST_RUNNING = func.coalesce(
    _OWN_RUNNING.correlate(JobRow).scalar_subquery(), bindparam("running", type_=BigInteger)
)
_WAITS = (JobRow.status == JobStatus.QUEUED.value) & or_(
    _MOST_RUNNING == 0, _OWNERS_RUNNING < _MOST_RUNNING
)
_NEXT = (
    select(JobRow.number, JobRow.owner, JobRow.status)
    .where(or_(_WAITS, _LOST))
    .order_by(case((_WAITS, 1), else_=0), _OWNERS_RUNNING, _OWNERS_LAST_START, JobRow.number)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_TAKE_NEXT = (
    update(JobRow)
    .where(
        JobRow.number == bindparam("next"),
        or_(not_(_BUSY), JobRow.lost_leases < SUSPECT_LOST_LEASES),
    )
    .values(
        status=JobStatus.RUNNING.value,
        attempt=JobRow.attempt + 1,
        lost_leases=case((_RUNNING, JobRow.lost_leases + 1), else_=JobRow.lost_leases),
        worker=_WORKER,
        lease_s=_LEASE,
        lease_until=_NOW + _LEASE,
        started_at=func.coalesce(JobRow.started_at, _NOW),
    )
    .returning(JobRow)
)
# True for jobs with a lease that is over, or longer than it can be: a claim settles both.
_CLAIMABLE = select(
    exists().where(
        or_(
            _WAITS,
            _RUNNING
            & not_(JobRow.lease_until.between(_NOW, _NOW + JobRow.lease_s + _CLOCK_SLACK_S)),
        )
    )
)


def has_claimable(session: Session, now: float, running: int) -> bool:
    """Whether `settle_lost_jobs` or `take_next` would find a job to change."""
    return bool(session.scalar(_CLAIMABLE, {"at": now, "running": running}))


@dataclass(frozen=True, eq=False)
class JobChange:
    """A change of a job's row at the time `now`. The row is locked until the transaction ends."""

    session: Session
    row: JobRow
    now: float

    def add_event(
        self,
        level: Level,
        message: str,
        type: EventType = "message",
        data: Mapping[str, object] | None = None,
    ) -> None:
        event = EventRow(
            id=f"ftevent-{secrets.token_hex(12)}",
            owner=self.row.owner,
            job=self.row.id,
            created_at=int(self.now),
            level=level,
            type=type,
            message=message.replace("\0", ""),  # which PostgreSQL does not take
            data=None if data is None else dict(data),
        )
        self.session.add(event)
        self.session.flush()  # so that events are numbered in the order in which they are added

    def end(self, status: JobStatus, message: str) -> Job:
        """End the job: its last change."""
        self._leave_worker(status)
        self.row.finished_at = int(self.now)
        self.add_event("error" if status == JobStatus.FAILED else "info", message)
        return Job.from_row(self.row)

    def cancel(self) -> Job:
        """End the job because its owner cancelled it."""
        return self.end(JobStatus.CANCELLED, "The job was cancelled")

    def fail(self, code: str, message: str, param: str | None = None) -> Job:
        row, text = self.row, message.replace("\0", "")
        row.error_code, row.error_message, row.error_param = code, text, param
        return self.end(JobStatus.FAILED, f"The job failed: {text}")

    def requeue_or_pause(self, requeued: str) -> Job:
        """Take the job from its worker: cancel or pause it if its owner asked for that, else queue
        it with the event `requeued`."""
        if self.row.cancel_requested:
            return self.cancel()
        paused = self.row.pause_requested
        self._leave_worker(JobStatus.PAUSED if paused else JobStatus.QUEUED)
        self.add_event("info", "The job is paused; resume it to continue" if paused else requeued)
        return Job.from_row(self.row)

    def lose_worker(self, how: str) -> None:
        """End the lease of a worker that is lost: the next claim takes the job over."""
        self.row.lease_until = 0.0
        message = f"The worker {how}. Another continues the job from its last checkpoint"
        self.add_event("warn", message)

    def _leave_worker(self, status: JobStatus) -> None:
        row = self.row
        row.status = status
        row.pause_requested = False  # or an ended job could be resumed
        row.worker = row.lease_until = row.estimated_finish = None


def settle_lost_jobs(session: Session, worker: str, now: float, busy: bool) -> None:
    """Before a claim: end or pause lost jobs that must not be taken over, and shorten long leases.
    Jobs that were lost in silence get an event.

    A clock that was set back has made the leases before it longer than they were meant.
    """
    options = {"synchronize_session": False}
    session.execute(_SHORTEN_LEASES, {"at": now}, execution_options=options)
    for row in session.scalars(_LOST_IN_SILENCE, {"at": now, "by": worker, "busy": busy}).all():
        JobChange(session, row, now).lose_worker(f"sent no heartbeat for {row.lease_s:g} s")
    for row in session.scalars(_LOST_FOR_GOOD, {"at": now, "by": worker, "busy": busy}).all():
        change = JobChange(session, row, now)
        if row.cancel_requested or row.pause_requested:
            change.requeue_or_pause("")
            continue
        change.fail(
            "worker_lost",
            f"{row.lost_leases + 1} workers in a row stopped without getting past step {row.step}: "
            "the worker's log may say why",
        )


def take_next(
    session: Session, by: str, lease_s: float, now: float, busy: bool, running: int
) -> JobRow | None:
    """Give the next job to the worker `by`; None if nothing waits for it.

    Args:
        running: how many jobs of an owner may run at once, unless its own limit says otherwise;
            0: any number.
    """
    values = {"by": by, "lease": lease_s, "at": now, "busy": busy, "running": running}
    found = session.execute(_NEXT, values).one_or_none()
    if found is None:
        return None
    number, owner, status = found
    if status == JobStatus.QUEUED.value and _as_many_run(session, owner, running):
        return None
    return session.scalar(
        _TAKE_NEXT, values | {"next": number}, execution_options={"synchronize_session": False}
    )


def _as_many_run(session: Session, owner: str, default: int) -> bool:
    """Whether as many of the owner's jobs run as may: another worker may have just taken one."""
    most = limits_of(session, owner, Limits(running_jobs=default)).running_jobs
    if not most:
        return False
    mine = select(OwnerRow.id).where(OwnerRow.id == owner)
    session.execute(mine.with_for_update(key_share=True))  # until the other's is to be seen
    run = JobRow.owner == owner, JobRow.status == JobStatus.RUNNING.value
    return (session.scalar(select(func.count()).where(*run)) or 0) >= most
