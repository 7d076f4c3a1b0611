"""Opens a home to serve or train, unless it has lost what it should hold. Knows no HTTP."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from adapters_store import disk
from adapters_store.store import AdapterStore
from adapters_store.store_errors import StoreError
from server.config import Settings
from server.db.session import Database, ensure_owner
from server.db.tenancy_tables import OwnerRow
from server.errors import Unavailable
from server.tenancy.principal import DEFAULT_OWNER
from server.training.job.publish import JOB
from server.wiring.building import Records, open_records

log = logging.getLogger(__name__)

_KEPT = ("adapters", "files")
_WORK = ("adapters/.staging", "adapters/.trash", "files/.uploads", "training", "porting")
_SHOWN = 3


@contextmanager
def open_home(settings: Settings, *, patience_s: float | None = None) -> Iterator[Records]:
    """`open_records`, for what writes to the home.

    Args:
        patience_s: see `Database`.

    Raises:
        Unavailable: the database is missing, empty or damaged where the folders are not, or a
            folder is gone or cannot be written; the message names it and the remedy.
    """
    with closing(Database(settings.database)) as database:
        _refuse_lost_folders(settings.home_path, database)
        _check_folders(settings.home_path)
        _refuse_lost_database(settings.home_path, database)
    with open_records(settings, patience_s=patience_s) as records:
        _mark_as_used(records.database)
        _report_missing(records, settings.home_path)
        yield records


@contextmanager
def rebuilt_home(settings: Settings) -> Iterator[Records]:
    """`open_records`, with a new database if there is none. Raises Unavailable as `open_home`."""
    with closing(Database(settings.database)) as database:
        _check_folders(settings.home_path)
        database.what_is_lost()  # raises what cannot be mended here
    with open_records(settings) as records:
        _mark_as_used(records.database)
        yield records


def _mark_as_used(database: Database) -> None:
    """Make the first row, by which an empty database is told from a new one."""
    with database.reading() as session:
        known = session.get(OwnerRow, DEFAULT_OWNER) is not None
    if not known:
        with database.transaction() as session:
            ensure_owner(session, DEFAULT_OWNER, database.now(session))


def _check_folders(home: Path) -> None:
    """Make the home's folders, and write to each. A full disk is no fault: deletes work there.

    Raises:
        Unavailable: naming the one that cannot be used.
    """
    for folder in (home / name for name in ("", *_KEPT, *_WORK)):
        try:
            with disk.unless_full():
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
        except OSError as error:
            raise Unavailable(
                f"the folder {folder} cannot be written ({error.strerror}): make it a folder that "
                "the server's user may read and write, or name another --home"
            ) from error


def _refuse_lost_folders(home: Path, database: Database) -> None:
    """What a used database knows may be on a disk that is not mounted now."""
    gone = next((home / name for name in _KEPT if _is_gone(home / name)), None)
    if gone is not None and database.what_is_lost() is None:
        raise Unavailable(
            f"the folder {gone} is gone, but the database {database.address} has been used with "
            "it: mount its disk, or restore it from a backup. To go on without what it held, make "
            "an empty folder there"
        )


def _is_gone(folder: Path) -> bool:
    try:
        folder.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _refuse_lost_database(home: Path, database: Database) -> None:
    lost = database.what_is_lost()
    if lost is None:
        return
    found = [
        *_found(home / "files", [path.name for path in (home / "files").glob("file-*")]),
        *_found(home / "adapters", _adapters(home / "adapters", trained=lost == "has no rows")),
        *_found(home / "training", [path.name for path in (home / "training").glob("ftjob-*")]),
    ]
    if found:
        raise Unavailable(
            f"the database {database.address} {lost}, but {', '.join(found)}. Restore the "
            "database from a backup. If there is none, `verandah rebuild` makes a new one: "
            "adapters need no rows and are kept, files get new rows without their names, and jobs "
            "are lost"
        )


def _found(folder: Path, names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return [f"{folder} holds {len(names)} ({shown})"]


def _adapters(folder: Path, *, trained: bool) -> list[str]:
    """The names of all adapters, or of those that a job of the lost database has trained.

    Imported ones come without a job: whoever only imports has no other rows.
    """
    store = AdapterStore(folder)
    names = [(owner, name) for owner in store.owners() for name in store.names(owner)]
    if not trained:
        return [name for _, name in names]
    return [name for owner, name in names if _has_job(store, owner, name)]


def _has_job(store: AdapterStore, owner: str, name: str) -> bool:
    with contextlib.suppress(StoreError):
        ref = store.resolve(owner, name)
        return JOB in store.open(ref).manifest.provenance
    return False


def _report_missing(records: Records, home: Path) -> None:
    missing = records.files.missing()
    if missing:
        log.error(
            "%d files are in the database and not in %s, such as %s: restore them from a backup, "
            "or upload them again; requests and jobs that need them are refused",
            *(len(missing), home / "files", missing[0]),
        )
