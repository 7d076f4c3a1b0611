"""Removes an owner's jobs and files, some at a time. Knows nothing of why."""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import delete, func, select

from server.db.session import Database
from server.db.tables import CheckpointRow, EventRow, FileRow, JobRow, LabelRow
from server.jobs.queue.job import UNFINISHED

_JOBS = 20
_FILES = 100


def running_jobs(database: Database, owner: str) -> int:
    """How many of the owner's jobs have not ended."""
    query = select(func.count()).select_from(JobRow)
    with database.reading() as session:
        mine = query.where(JobRow.owner == owner, JobRow.status.in_(UNFINISHED))
        return session.scalar(mine) or 0


def remove_some_jobs(database: Database, owner: str, clear: Callable[[str], None]) -> bool:
    """Remove some ended jobs with all that is recorded of them; False: there are none.

    Args:
        clear: removes what a job left on the disk, before its row goes.
    """
    mine = select(JobRow.id).where(JobRow.owner == owner, JobRow.status.not_in(UNFINISHED))
    with database.reading() as session:
        ids = session.scalars(mine.limit(_JOBS)).all()
    for job in ids:
        clear(job)
    with database.transaction() as session:
        for table in (EventRow, CheckpointRow, LabelRow):
            session.execute(delete(table).where(table.job.in_(ids)))
        session.execute(delete(JobRow).where(JobRow.id.in_(ids)))
    return bool(ids)


def remove_some_files(database: Database, owner: str, folder: Path) -> bool:
    """Remove some files; False: there are none. The bytes go first, as a row finds them again."""
    with database.reading() as session:
        mine = select(FileRow.id).where(FileRow.owner == owner).limit(_FILES)
        ids = session.scalars(mine).all()
    for file in ids:
        (folder / file).unlink(missing_ok=True)
    with database.transaction() as session:
        session.execute(delete(FileRow).where(FileRow.id.in_(ids)))
    return bool(ids)
