"""The database: transactions, migrations. Knows no tables but the owners'.

SQLite in WAL mode by default, or PostgreSQL by URL (`postgresql://...`, with the extra
`postgres`). Every commit is on the disk before it returns. A SQLite file that was moved away is no
longer written to, and only `migrate` makes a new one. Once it is back, everything works again.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import cast

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, exc, func, inspect, select, text
from sqlalchemy.orm import Session

from server.db.sql_engine import WAL_PAGES, engine_of, path_of
from server.db.sqlite_file import damaged, failure, what_is_lost
from server.db.tables import TableBase
from server.db.tenancy_tables import OwnerRow
from server.errors import Conflict, Unavailable

ACTIVE_OWNER = "active"
"""The status of an owner that may have new things; see `server.tenancy.owners.Owner`."""

_PATIENCE_S = 15.0
_RESERVED_PAGES = 384  # for a whole log, and one change more
_PAGE_BYTES = 4096
_NO_RESERVE = "DROP TABLE IF EXISTS reserve"
_MIGRATIONS_LOCK = 0x56455241  # any number that no other program locks in the same database


class Database:
    """One database, shared by threads. Another process opens its own.

    Args:
        url: SQLAlchemy URL.
        patience_s: how long to wait for a lock that another holds, or for a free connection; None:
            15 s, which suits who has nobody waiting.
        clock: Unix seconds. None: the database server's own clock, so that all machines agree;
            SQLite has none, so there it is this machine's.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._engine = engine_of(url, _PATIENCE_S if patience_s is None else patience_s)
        self._sqlite = self._engine.dialect.name == "sqlite"
        self._path = path_of(self._engine)
        self._clock = time.time if clock is None and self._sqlite else clock

    @property
    def address(self) -> str:
        """Where it is, for people: the path of SQLite's file, or a URL without its password."""
        return str(self._path or repr(self._engine.url))

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Read and write; all or nothing. In SQLite, a writer waits for others from the start.

        Raises:
            Unavailable: the database cannot be reached, is full, or was busy for too long.
        """
        session = Session(self._engine, expire_on_commit=False)
        with _failing_clearly(self._engine), session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Only read, without waiting for writers. Raises Unavailable."""
        engine = self._engine.execution_options(sqlite_begin="BEGIN")
        session = Session(engine, expire_on_commit=False)
        with _failing_clearly(self._engine), session, session.begin():
            yield session

    def now(self, session: Session) -> float:
        """Unix seconds, by the clock that keeps the leases."""
        if self._clock is not None:
            return self._clock()
        return float(session.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0)

    def migrate(self, *, create: bool = True) -> None:
        """Bring the schema up to this build's. Several processes may do so at once.

        Args:
            create: make SQLite's file if it is missing.

        Raises:
            Unavailable: the database cannot be reached, lacks a table, or a newer Verandah made it.
        """
        if self._sqlite and create:
            with suppress(OSError):  # connecting says why
                Path(str(self._engine.url.database)).touch()
        with _failing_clearly(self._engine), self._engine.begin() as connection:
            if not self._sqlite:  # SQLite's transaction has its one lock already
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATIONS_LOCK)))
            try:
                command.upgrade(migrations(connection), "head")
            except CommandError as error:
                raise Unavailable(
                    f"a newer Verandah made the schema of {self._engine.url!r} ({error}): "
                    "upgrade, or name another database"
                ) from error
            missing = TableBase.metadata.tables.keys() - inspect(connection).get_table_names()
        if missing:
            raise Unavailable(
                f"the database {self.address} has lost the table {min(missing)!r}: restore a "
                "backup, or move the database away and run `verandah rebuild`"
            )

    def what_is_lost(self) -> str | None:
        """How the database shows that it was not used before: it "is missing", "has no rows", or
        another predicate. None: it was used.

        Raises:
            Unavailable: it cannot be reached or is damaged, or it is another program's file.
        """
        if self._path is not None:
            lost = what_is_lost(self._path)
            if lost is not None:
                return lost
        with self.reading() as session:
            tables = inspect(session.connection()).get_table_names()
            if "alembic_version" not in tables:
                return "has no tables"
            used = OwnerRow.__tablename__ in tables and session.scalar(select(OwnerRow.id).limit(1))
            return None if used else "has no rows"

    def reserve_room(self) -> None:
        """Make SQLite's files larger than they need to be: files can then be deleted, and jobs end,
        on a full disk. Does nothing where they are. Raises Unavailable."""
        if self._path is None or self._has_room(self._path):
            return
        room = f"CREATE TABLE reserve AS SELECT zeroblob({_RESERVED_PAGES * _PAGE_BYTES}) AS room"
        for statements in ((_NO_RESERVE, room), (_NO_RESERVE,)):
            with self.transaction() as session:
                for statement in statements:
                    session.execute(text(statement))
        with _failing_clearly(self._engine), closing(self._engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(RESTART)")

    def _has_room(self, path: Path) -> bool:
        with self.reading() as session:
            free = int(session.scalar(text("PRAGMA freelist_count")) or 0)
        log = Path(f"{path}-wal")
        log_bytes = log.stat().st_size if log.exists() else 0
        return min(free, log_bytes // _PAGE_BYTES) >= WAL_PAGES

    def close(self) -> None:
        self._engine.dispose()


def ensure_owner(session: Session, owner: str, now: float) -> None:
    """Make the owner's row if it is missing, so that other rows may refer to it.

    Raises:
        Conflict: the owner is archived or being deleted, so nothing new may be its own. It stays
            active until the transaction ends.
    """
    # As strong as any later lock of this row: two that share it and then want more wait for ever.
    row = session.get(OwnerRow, owner, with_for_update={"key_share": True})
    if row is not None and row.status != ACTIVE_OWNER:
        raise Conflict(f"project {owner!r} is {row.status}: nothing can be added to it")
    if row is not None:
        return
    try:
        with session.begin_nested():
            session.add(
                OwnerRow(id=owner, name=owner, folded=owner.casefold(), created_at=int(now))
            )
    except exc.IntegrityError:  # another process has made it meanwhile
        return


def migrations(connection: Connection) -> Config:
    """Alembic's configuration, without a file: the packaged scripts, over this connection."""
    config = Config()
    folder = Path(__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _failing_clearly(engine: Engine) -> Iterator[None]:
    path = path_of(engine)
    try:
        yield
    except exc.TimeoutError as error:  # all connections wait for the same lock
        raise Unavailable(f"the database {engine.url!r} is too busy: {error}") from error
    except exc.DatabaseError as error:
        if isinstance(error, exc.OperationalError) and path is None:
            raise Unavailable(f"the database {engine.url!r} failed: {error.orig}") from error
        if path is None or type(error) not in (exc.OperationalError, exc.DatabaseError):
            raise  # our own mistake
        raise failure(path, cast(Exception, error.orig)) from error
    except exc.InterfaceError as error:
        raise Unavailable(f"the database {engine.url!r} failed: {error.orig}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:  # a row or the driver's message
        if path is None:
            raise
        raise damaged(path, str(error)) from error
