"""What a worker works with, whichever job is in its hands."""

from dataclasses import dataclass
from pathlib import Path

from adapters_store.store import AdapterStore
from server.jobs.files.file_store import Files
from server.jobs.queue.job_queue import JobQueue


@dataclass(frozen=True)
class JobServices:
    """What an attempt works with.

    `served_name` is the id under which users ask for the base. `folder` holds one folder of
    checkpoints per job. `max_rank` is the largest that the server serves. A job whose worker has
    not been heard of for `lease_s` seconds is another's. An adapter that the disk has no room for
    waits for `disk_retry_s` seconds.
    """

    queue: JobQueue
    files: Files
    store: AdapterStore
    served_name: str
    folder: Path
    max_rank: int = 1024
    lease_s: float = 30
    checkpoint_every_s: float = 20
    disk_retry_s: float = 600
