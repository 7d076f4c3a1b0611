"""Looks at a SQLite file before it is used, and says what to do when it fails. Knows no tables.

A file is opened here as it is: the server's own connections would turn it into WAL mode, and SQLite
removes the log of an empty one.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from server.errors import DiskFull, Unavailable

_TIMEOUT_S = 15.0
_REMEDIES: Final = {
    sqlite3.SQLITE_ERROR: "if it is another file than before, put the old one back",
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable for the server",
    sqlite3.SQLITE_CANTOPEN: "restore the file, or make it and its folder writable for the server",
    sqlite3.SQLITE_IOERR: "make room on its disk, or look for faults of the disk",
    sqlite3.SQLITE_BUSY: "another program has locked it for too long: try again",
}


def what_is_lost(path: Path) -> str | None:
    """How the file shows that it was not used before: it "is missing", or more. None: it was used.

    Raises:
        Unavailable: it is damaged, cannot be read, or is another program's.
    """
    try:
        if not path.stat().st_size:
            return "is empty"
    except FileNotFoundError:
        return "is missing"
    try:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT_S)) as connection:
            tables = {name for (name,) in connection.execute(_TABLES)}
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise failure(path, error) from error
    if found != "ok":
        raise damaged(path, found)
    if not tables:
        return "has no tables"
    if "alembic_version" not in tables:
        raise Unavailable(
            f"the database {path} is another program's (it has a table {min(tables)!r}): name "
            "another one, or restore Verandah's"
        )
    return None


_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


def failure(path: Path, error: Exception) -> Unavailable:
    """What an error of the driver means, with its remedy."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if isinstance(error, UnicodeDecodeError) or code in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    ):
        return damaged(path, str(error))
    remedy = _REMEDIES.get(code)
    kind = DiskFull if code == sqlite3.SQLITE_FULL else Unavailable
    return kind(f"the database {path} failed: {error}{f': {remedy}' if remedy else ''}")


def damaged(path: Path, reason: str) -> Unavailable:
    """The error for a file whose content is wrong."""
    return Unavailable(
        f"the database {path} is damaged: {reason}. See what `sqlite3 {path} 'PRAGMA "
        "integrity_check'` says, and restore the file from a backup. If there is none, move it "
        "away with its -wal and -shm, and run `verandah rebuild`"
    )
