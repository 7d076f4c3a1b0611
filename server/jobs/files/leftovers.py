"""Bytes without a row, and rows without bytes: what crashes and restores leave of files.

A crash leaves few bytes under a file's id. Many are what an older or another database does not
know: they stay, and `adopt` gives them rows.
"""

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import select

from server.db.session import Database, ensure_owner
from server.db.tables import FileRow

log = logging.getLogger(__name__)

_AGE_S = 24 * 3600
_FEW = 10
_ID = re.compile("file-[0-9a-f]{24}")
_RESULTS_BEGIN = b"step,train_loss,"


def known_ids(database: Database) -> set[str]:
    """The ids of all owners' files."""
    with database.reading() as session:
        return set(session.scalars(select(FileRow.id)))


def remove(database: Database, folder: Path, uploads: Path) -> int:
    """Remove bytes without a row that are older than a day; return how many.

    The age is by the file system's clock and this machine's. Whatever they say, an upload in
    progress is locked, and stays.
    """
    oldest = time.time() - _AGE_S
    stale = [path for path in folder.glob("file-*") if _older(path, oldest)]
    known = known_ids(database) if stale else set()
    unknown = [path for path in stale if path.name not in known]
    if unknown and (not known or len(unknown) > _FEW):
        log.warning(
            "%d files in %s, such as %s, are not in the database: restore its newest backup, or "
            "run `verandah rebuild` to keep them",
            *(len(unknown), folder, unknown[0].name),
        )
        unknown = []
    halves = [path for path in uploads.glob("*") if _older(path, oldest)]
    return sum(_removed(database, path) for path in (*unknown, *halves))


def adopt(database: Database, folder: Path, owner: str) -> list[str]:
    """Give each file without a row a new one, and return their ids.

    Name and expiry are lost. The bytes are taken to be what was uploaded.
    """
    known, adopted = known_ids(database), []
    for path in sorted(folder.glob("file-*")):
        if path.name in known or not _ID.fullmatch(path.name):
            continue
        with suppress(BlockingIOError), _locked(path) as descriptor:  # else it is being uploaded
            row = _row(path, descriptor, owner)
            with database.transaction() as session:
                ensure_owner(session, owner, database.now(session))
                session.add(row)
            adopted.append(path.name)
    return adopted


def _row(path: Path, descriptor: int, owner: str) -> FileRow:
    with open(descriptor, "rb", closefd=False) as file:
        result = file.read(len(_RESULTS_BEGIN)) == _RESULTS_BEGIN
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    found = os.fstat(descriptor)
    return FileRow(
        id=path.name,
        owner=owner,
        filename=f"{path.name}.{'csv' if result else 'jsonl'}",
        purpose="fine-tune-results" if result else "fine-tune",
        bytes=found.st_size,
        sha256=sha256,
        created_at=int(found.st_mtime),
        expires_at=None,
    )


def _removed(database: Database, path: Path) -> bool:
    """Remove a leftover; False: it is none, or cannot be removed."""
    try:
        with _locked(path), database.reading() as session:
            # Looked up once more: the upload may have ended since.
            if session.scalar(select(FileRow.id).where(FileRow.id == path.name)) is not None:
                return False
            path.unlink()
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("the leftover %s stays: %s", path, error.strerror)
        return False
    log.info("removed %s, which an upload left", path)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Raises BlockingIOError: it is being uploaded."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _older(path: Path, time_s: float) -> bool:
    try:
        return path.lstat().st_mtime < time_s
    except FileNotFoundError:
        return False
