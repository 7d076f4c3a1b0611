"""Connections: to a SQLite file in WAL mode, or to PostgreSQL. Knows no tables."""

import os
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.pool import ConnectionPoolEntry

from server.errors import Unavailable

WAL_PAGES = 256
"""So many pages, and SQLite begins its log again at the front."""

_MAX_CONNECTIONS = 40  # more than the threads that ask, so that readers never wait for writers
_HUNG_CLIENT_MS = 30_000  # in a transaction without a statement


def engine_of(address: str, patience_s: float) -> Engine:
    """SQLAlchemy's engine for a URL.

    Args:
        patience_s: how long to wait for a lock that another holds, or for a free connection.

    Raises:
        Unavailable: the URL names a database in memory, or one whose driver is not installed.
    """
    url = make_url(address)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite":
        try:
            engine = create_engine(
                url,
                pool_pre_ping=True,
                pool_timeout=patience_s,
                max_overflow=_MAX_CONNECTIONS,
            )
        except ModuleNotFoundError as error:
            raise Unavailable(
                f"{url!r} needs the package {error.name}: install verandah[postgres] for PostgreSQL"
            ) from error
        event.listen(engine, "connect", partial(_set_up_postgres, patience_s))
        return engine
    if url.database is None or url.database in ("", ":memory:"):
        raise Unavailable(
            f"{address!r} is a database in memory, which the worker's process cannot share; "
            "name a file: sqlite:////path/to/verandah.db"
        )
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_timeout=patience_s, max_overflow=_MAX_CONNECTIONS)
    _follow_file(engine, path)
    event.listen(engine, "connect", partial(_set_up_sqlite, patience_s))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _follow_file(engine: Engine, path: Path) -> None:
    """Fail if the file is missing, and reconnect if it was replaced. SQLite would make a new one,
    and an open connection would write to a file that was moved or deleted."""

    def connect(
        _dialect: object, _record: object, _arguments: object, options: dict[str, Any]
    ) -> sqlite3.Connection:
        uri = f"file:{quote(str(path))}?mode=rw"
        return cast(sqlite3.Connection, sqlite3.connect(uri, uri=True, **options))

    def note(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info["file"] = _identity(path)

    def check(_connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
        if record.info.get("file") != _identity(path):
            raise exc.DisconnectionError(f"{path} is another file than before")

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", note)
    event.listen(engine, "checkout", check)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _set_up_postgres(patience_s: float, connection: DBAPIConnection, _record: object) -> None:
    """Wait for no lock for ever, and free the locks of a client that hangs in a transaction."""
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = {int(patience_s * 1000)}")
    cursor.execute(f"SET idle_in_transaction_session_timeout = {_HUNG_CLIENT_MS}")
    cursor.close()
    connection.commit()


def _set_up_sqlite(patience_s: float, connection: DBAPIConnection, _record: object) -> None:
    # The driver would begin transactions late and deferred: a reader that becomes a writer then
    # fails at once, whatever the timeout is.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(patience_s * 1000)}")
    _use_wal(cursor, patience_s)
    cursor.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _use_wal(cursor: DBAPICursor, patience_s: float) -> None:
    """Switch to WAL. It fails at once while another has a new file open, so try again."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get("sqlite_begin", "BEGIN IMMEDIATE")
    connection.exec_driver_sql(begin)


def path_of(engine: Engine) -> Path | None:
    """Where SQLite's file is; None: it is another database."""
    return Path(str(engine.url.database)) if engine.dialect.name == "sqlite" else None
