"""Removes expired files and what crashes left, at start and now and then. Knows no requests."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from adapters_store.store_errors import StoreError
from server.config import Settings
from server.errors import Unavailable, VerandahError
from server.tenancy.usage.audit_log import AuditLog
from server.tenancy.usage.usage_book import DAY_S, UsageBook
from server.training.run import checkpoint
from server.wiring.building import Records

log = logging.getLogger(__name__)

_EVERY_S = 300.0


@contextmanager
def housekeeping(
    settings: Settings, records: Records, *, every_s: float = _EVERY_S
) -> Iterator[None]:
    """Keep the home tidy in a thread of this process."""
    folder = settings.home_path / "training"

    def remove_job_folders() -> None:
        keep = records.jobs.unfinished()
        checkpoint.sweep(folder, older_than_s=checkpoint.LEFTOVER_AGE_S, keep=keep)

    def expire_files() -> None:
        for file in records.files.expire():
            log.info("file %s (%d bytes) of %s expired", file.id, file.bytes, file.owner)

    def drop_old_changes() -> None:
        AuditLog(records.database).drop_older(settings.audit_days * DAY_S)

    def cancel_jobs() -> None:
        while records.jobs.cancel_of_inactive_owners():
            pass

    tasks = (
        cancel_jobs,  # of owners that were archived just before a crash
        *(UsageBook(records.database).fold, drop_old_changes),
        *(records.database.reserve_room, expire_files, records.files.sweep),
        *(records.store.sweep, remove_job_folders),
    )
    stop = threading.Event()
    thread = threading.Thread(target=_repeat, args=(tasks, every_s, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _repeat(tasks: Sequence[Callable[[], object]], every_s: float, stop: threading.Event) -> None:
    while True:
        for task in tasks:
            if not stop.is_set():
                _try(task)
        if stop.wait(every_s):
            return


def _try(task: Callable[[], object]) -> None:
    try:
        task()
    except (VerandahError, StoreError, OSError) as error:
        level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
        log.log(level, "housekeeping is put off: %s", error)
    except Exception:  # the other tasks go on
        log.exception("housekeeping failed")
