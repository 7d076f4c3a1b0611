"""Queues and files on a real database: SQLite always, PostgreSQL in `make test-services`."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.db.session import Database
from server.jobs.files.file_store import Files
from server.jobs.queue.job import Job
from server.jobs.queue.job_queue import JobQueue
from tests.db.conftest import url
from tests.db.migrated import migrated

__all__ = ["url"]


@dataclass
class Clock:
    """A clock that tests set."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Jobs:
    """A queue with its clock, and jobs made in one call."""

    database: Database
    queue: JobQueue
    files: Files
    clock: Clock
    _uploaded: dict[str, str] = field(default_factory=dict)

    def file(self, owner: str = "ann") -> str:
        if owner not in self._uploaded:
            source = io.BytesIO(b"{}")
            self._uploaded[owner] = self.files.create(owner, "x.jsonl", "fine-tune", source).id
        return self._uploaded[owner]

    def create(self, owner: str = "ann", **more: Any) -> Job:
        return self.queue.create(owner, "base", self.file(owner), **more)

    def claim(self, worker: str = "w1", lease_s: float = 30.0) -> Job:
        """Claim a job that must be there."""
        job = self.queue.claim(worker, lease_s)
        assert job is not None
        return job

    def messages(self, job: Job) -> list[str]:
        """What it told, the oldest first."""
        page = self.queue.events(job.owner, job.id, limit=1000)
        return [event.message for event in reversed(page.items)]


@pytest.fixture
def jobs(url: str, tmp_path: Path) -> Iterator[Jobs]:
    clock = Clock()
    database = migrated(url, clock=clock)
    yield Jobs(database, JobQueue(database), Files(database, tmp_path / "files", 1000), clock)
    database.close()
