"""Refuses what an owner may no longer keep or train. Each check is in the transaction that it is
for, with the owner's row locked, so that those at the same time follow one another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from server.db.owner_limits import Limits, limits_of
from server.db.session import Database
from server.db.tables import FileRow, JobRow
from server.db.tenancy_tables import OwnerRow
from server.errors import QuotaExceeded
from server.jobs.queue.job import UNFINISHED, JobStatus

_DAY_S = 86_400
_WAITING = (JobStatus.QUEUED.value, JobStatus.PAUSED.value)
_ASK = "or ask who runs the server for more"

Stored = Callable[[str], Mapping[str, int]]
"""The bytes on the disk of each of an owner's adapters, by name."""


@dataclass(frozen=True)
class Kept:
    """What the database knows of an owner's things. `coming` are the adapters that its jobs will
    make, with their bytes; `trained_tokens` are those of a day."""

    files: int
    file_bytes: int
    coming: Sequence[tuple[str, int]]
    running_jobs: int
    waiting_jobs: int
    trained_tokens: int


class Quotas:
    """What all owners may keep and train.

    Args:
        defaults: for owners whose own limits say nothing else.
        stored: tells of adapters. It is asked only for owners with a limit of that.
    """

    def __init__(self, defaults: Limits | None = None, stored: Stored = lambda _: {}) -> None:
        self.defaults = defaults or Limits()
        self._stored = stored

    def check_file(self, session: Session, owner: str, size: int, now: float) -> None:
        """Raise QuotaExceeded unless the owner may keep one more file, of so many bytes."""
        limits = limits_of(session, owner, self.defaults)
        if not (limits.files or limits.stored_bytes):
            return
        _lock(session, owner)
        count, kept = _files(session, owner, now)
        if limits.files and count >= limits.files:
            raise QuotaExceeded(
                f"the project {owner!r} has {count} files, and may have {limits.files}: delete "
                f"some, {_ASK}"
            )
        if limits.stored_bytes:
            used = kept + sum(self._stored(owner).values())
            _check_bytes(owner, limits, used, size)

    def check_adapter(self, session: Session, owner: str, name: str, size: int, now: float) -> None:
        """Raise QuotaExceeded unless the owner may keep a version of `name`, of so many bytes."""
        limits = limits_of(session, owner, self.defaults)
        if not (limits.adapters or limits.stored_bytes):
            return
        _lock(session, owner)
        self._check_adapter(session, owner, limits, name, size, now)

    @contextmanager
    def keeping(self, database: Database, owner: str, name: str, size: int) -> Iterator[None]:
        """`check_adapter`, and nothing else is checked for the owner while it is being kept."""
        with database.transaction() as session:
            self.check_adapter(session, owner, name, size, database.now(session))
            yield

    def check_job(
        self, session: Session, owner: str, name: str, tokens: int, size: int, now: float
    ) -> None:
        """Raise QuotaExceeded unless the owner may queue one more job.

        Args:
            name: of the adapter that it will make, of `size` bytes.
            tokens: that it will train.
        """
        limits = limits_of(session, owner, self.defaults)
        if not (
            limits.waiting_jobs
            or limits.training_tokens_a_day
            or limits.adapters
            or limits.stored_bytes
        ):
            return
        _lock(session, owner)
        count = _jobs(session, owner, _WAITING)
        if limits.waiting_jobs and count >= limits.waiting_jobs:
            raise QuotaExceeded(
                f"{count} jobs of the project {owner!r} wait or are paused, and "
                f"{limits.waiting_jobs} may: cancel some, or send this one once one of them runs"
            )
        if limits.training_tokens_a_day:
            used = _trained(session, owner, now)
            _check_tokens(owner, limits.training_tokens_a_day, used, tokens)
        if limits.adapters or limits.stored_bytes:
            self._check_adapter(session, owner, limits, name, size, now)

    def _check_adapter(
        self, session: Session, owner: str, limits: Limits, name: str, size: int, now: float
    ) -> None:
        stored, coming = self._stored(owner), _coming(session, owner)
        names = stored.keys() | {each for each, _ in coming}
        if limits.adapters and name not in names and len(names) >= limits.adapters:
            raise QuotaExceeded(
                f"the project {owner!r} has {len(names)} adapters, with those that its jobs will "
                f"make, and may have {limits.adapters}: delete some, {_ASK}"
            )
        if limits.stored_bytes:
            used = _files(session, owner, now)[1] + sum(stored.values())
            _check_bytes(owner, limits, used + sum(each for _, each in coming), size)


def kept_of(session: Session, owner: str, now: float) -> Kept:
    """What counts against the owner's quotas."""
    files, file_bytes = _files(session, owner, now)
    return Kept(
        files,
        file_bytes,
        _coming(session, owner),
        _jobs(session, owner, (JobStatus.RUNNING.value,)),
        _jobs(session, owner, _WAITING),
        _trained(session, owner, now),
    )


def adapter_name(suffix: str | None, job_id: str) -> str:
    """The name of the adapter that a job makes."""
    return suffix or f"ft-{job_id[-8:]}"


def _lock(session: Session, owner: str) -> None:
    """Wait for the owner's other checks, on every machine. In SQLite the transaction does that."""
    mine = select(OwnerRow.id).where(OwnerRow.id == owner)
    session.execute(mine.with_for_update(key_share=True))


def _files(session: Session, owner: str, now: float) -> tuple[int, int]:
    """How many files the owner has, and their bytes."""
    there = or_(FileRow.expires_at.is_(None), FileRow.expires_at > now)
    counted = select(func.count(), func.sum(FileRow.bytes)).where(FileRow.owner == owner, there)
    count, total = session.execute(counted).one()
    return count, int(total or 0)


def _jobs(session: Session, owner: str, statuses: Sequence[str]) -> int:
    """How many jobs with one of these statuses the owner has."""
    query = select(func.count()).where(JobRow.owner == owner, JobRow.status.in_(statuses))
    return session.scalar(query) or 0


def _coming(session: Session, owner: str) -> list[tuple[str, int]]:
    """The adapters that jobs will make: their names and bytes."""
    columns = select(JobRow.suffix, JobRow.id, JobRow.appraisal)
    jobs = session.execute(columns.where(JobRow.owner == owner, JobRow.status.in_(UNFINISHED)))
    return [
        (adapter_name(suffix, job), int((estimate or {}).get("adapter_bytes", 0)))
        for suffix, job, estimate in jobs
    ]


def _check_bytes(owner: str, limits: Limits, used: int, more: int) -> None:
    if used + more > limits.stored_bytes:
        raise QuotaExceeded(
            f"the files and adapters of the project {owner!r} take {used} bytes, with {more} more "
            f"they would take {used + more}, and may take {limits.stored_bytes}: delete some, "
            f"{_ASK}"
        )


def _trained(session: Session, owner: str, now: float) -> int:
    """Tokens of jobs that ended in the last day, and of those that have not ended what was
    estimated."""
    mine = JobRow.owner == owner
    ended = select(func.sum(JobRow.trained_tokens)).where(
        mine, JobRow.status.not_in(UNFINISHED), JobRow.finished_at > now - _DAY_S
    )
    running = select(JobRow.appraisal, JobRow.trained_tokens)
    used = int(session.scalar(ended) or 0)
    for estimate, trained in session.execute(running.where(mine, JobRow.status.in_(UNFINISHED))):
        used += max(int((estimate or {}).get("trained_tokens", 0)), trained or 0)
    return used


def _check_tokens(owner: str, limit: int, used: int, more: int) -> None:
    if used + more > limit:
        raise QuotaExceeded(
            f"the jobs of the project {owner!r} take {used} training tokens in a day, with "
            f"{more} more they would take {used + more}, and may take {limit}: train fewer tokens, "
            f"try again once earlier jobs ended a day ago, {_ASK}"
        )
