"""Migrations make the tables, transactions hold, writers wait for each other."""

import os
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, create_engine, select, text
from sqlalchemy.exc import IntegrityError

import server.db.session
import server.db.sql_engine
from server.db.session import Database, ensure_owner, migrations
from server.db.tables import FileRow, JobRow, LabelRow, TableBase
from server.db.tenancy_tables import OwnerRow
from server.errors import Unavailable


def _owners(database: Database) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(OwnerRow.id).order_by(OwnerRow.id)))


def test_the_migrations_make_the_tables_as_typed(database: Database, url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, TableBase.metadata) == []
    engine.dispose()


def test_migrating_again_changes_nothing(database: Database) -> None:
    with database.transaction() as session:
        session.add(OwnerRow(id="ann", folded="ann", created_at=1))
    database.migrate()
    assert _owners(database) == ["ann"]


def test_a_database_of_the_first_release_migrates(url: str) -> None:
    database = Database(url)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        command.upgrade(migrations(connection), "0001")
        connection.execute(text("INSERT INTO owners VALUES ('ann', 1)"))
        for number, metadata in enumerate(['{"k\\u00e9y": "v"}', "{}"]):
            values = {"id": f"ftjob-{number}", "metadata": metadata, "no": False}
            connection.execute(text(_OLD_JOB), values)
    engine.dispose()
    database.migrate()
    with database.reading() as session:
        rows = session.scalars(select(JobRow).order_by(JobRow.id)).all()
        labels = [(row.job, row.key, row.value) for row in session.scalars(select(LabelRow))]
    assert labels == [("ftjob-0", "kéy", "v")]
    assert [row.labels for row in rows] == [{"kéy": "v"}, {}]
    facts = (rows[0].pause_requested, rows[0].result_file, rows[0].appraisal)
    assert facts == (False, None, None)
    database.close()


_OLD_JOB = """
INSERT INTO jobs (id, owner, status, model, training_file, seed, hyperparameters, metadata,
                  created_at, cancel_requested, attempt, step, losses)
VALUES (:id, 'ann', 'queued', 'base', 'file-1', 7, '{}', :metadata, 1, :no, 0, 0, 0)
"""


def test_several_may_migrate_at_once(url: str) -> None:
    databases = [Database(url) for _ in range(8)]
    start = threading.Barrier(8)

    def migrate(database: Database) -> list[str]:
        start.wait(30)
        database.migrate()
        return _owners(database)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(migrate, databases)) == [[]] * 8
    for database in databases:
        database.close()


def test_a_newer_schema_is_refused(database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    with pytest.raises(Unavailable, match="newer Verandah"):
        database.migrate()


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError, match="power cut"), database.transaction() as session:
        session.add(OwnerRow(id="ann", folded="ann", created_at=1))
        session.flush()
        raise RuntimeError("power cut")
    assert _owners(database) == []


def test_a_row_needs_an_owner_that_exists(database: Database) -> None:
    row = FileRow(
        id="file-1", owner="nobody", filename="a", purpose="b", bytes=0, sha256="c", created_at=1
    )
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.add(row)


def test_an_owner_is_made_once(database: Database) -> None:
    def make(_: int) -> None:
        with database.transaction() as session:
            ensure_owner(session, "ann", 1.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(16)))
    assert _owners(database) == ["ann"]


def test_writers_do_not_lose_each_others_changes(database: Database) -> None:
    with database.transaction() as session:
        session.add(OwnerRow(id="ann", folded="ann", created_at=0))

    def count(_: int) -> None:
        with database.transaction() as session:
            row = session.get_one(OwnerRow, "ann", with_for_update=True)
            row.created_at += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(64)))
    with database.reading() as session:
        assert session.get_one(OwnerRow, "ann").created_at == 64


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    writing, written = threading.Event(), threading.Event()

    def write() -> None:
        with database.transaction() as session:
            session.add(OwnerRow(id="ann", folded="ann", created_at=0))
            session.flush()
            writing.set()
            assert written.wait(30)

    with ThreadPoolExecutor() as pool:
        writer = pool.submit(write)
        assert writing.wait(30)
        assert _owners(database) == []
        written.set()
        writer.result()
    assert _owners(database) == ["ann"]


def test_now_is_a_clock(database: Database, url: str) -> None:
    with database.reading() as session:
        assert abs(database.now(session) - time.time()) < 60
        assert database.now(session) <= database.now(session)
        assert Database(url, clock=lambda: 7.5).now(session) == 7.5


def test_sqlite_keeps_its_promises(database: Database) -> None:
    with database.reading() as session:
        if session.get_bind().dialect.name != "sqlite":
            pytest.skip("SQLite's settings")
        settings = [
            session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert settings == ["wal", 2, 1]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(Unavailable, match="name a file"):
        Database(url)


def test_an_unreachable_database_is_unavailable() -> None:
    pytest.importorskip("psycopg")
    database = Database("postgresql://nobody:secret@127.0.0.1:1/none")
    with pytest.raises(Unavailable, match="failed") as raised:
        database.migrate()
    assert "secret" not in str(raised.value)


def _sqlite(tmp_path: Path) -> tuple[Database, Path]:
    path = tmp_path / "ver?an%20dah#1.db"
    url = URL.create("sqlite", database=str(path)).render_as_string()
    database = Database(url)
    database.migrate()
    with database.transaction() as session:
        session.add(OwnerRow(id="ann", folded="ann", created_at=1))
    return database, path


def test_a_file_that_was_taken_away_is_not_made_anew_and_may_come_back(tmp_path: Path) -> None:
    database, path = _sqlite(tmp_path)
    path.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(Unavailable, match="unable to open"):
            _owners(database)
    with pytest.raises(Unavailable, match="unable to open"):
        database.migrate(create=False)
    assert not path.exists()
    (tmp_path / "away").rename(path)
    assert _owners(database) == ["ann"]
    database.close()


def test_a_file_that_was_exchanged_is_opened_again(tmp_path: Path) -> None:
    database, path = _sqlite(tmp_path)
    source, backup = sqlite3.connect(path), sqlite3.connect(tmp_path / "backup")
    source.backup(backup)
    source.close()
    backup.close()
    with database.transaction() as session:
        session.add(OwnerRow(id="bob", folded="bob", created_at=1))
    os.replace(tmp_path / "backup", path)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    assert _owners(database) == ["ann"]
    database.close()


def test_a_damaged_file_is_unavailable(tmp_path: Path) -> None:
    database, path = _sqlite(tmp_path)
    database.close()
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(Unavailable, match="not a database"):
        _owners(database)


def test_more_who_wait_for_a_lock_than_there_are_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.db.session, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(server.db.sql_engine, "_MAX_CONNECTIONS", 10)
    database, path = _sqlite(tmp_path)
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")

    def write(number: int) -> str:
        try:
            with database.transaction() as session:
                session.add(OwnerRow(id=str(number), folded=str(number), created_at=1))
        except Unavailable as error:
            return str(error)
        return "written"

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(write, range(24)))
    assert {"locked" in answer or "too busy" in answer for answer in answers} == {True}
    locker.rollback()
    locker.close()
    assert write(100) == "written"
    database.close()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(Unavailable, match="needs the package psycopg") as raised:
        Database("postgresql://ann:secret@127.0.0.1/none")
    assert "secret" not in str(raised.value)
