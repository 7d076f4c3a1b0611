"""A database that is missing, empty, damaged or another program's is told apart, and kept."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import exc, text

from server.db.session import Database, ensure_owner
from server.errors import DiskFull, Unavailable
from server.jobs.queue.job_queue import JobQueue


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed database with rows, to copy."""
    path = tmp_path_factory.mktemp("used") / "verandah.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.transaction() as session:
        for number in range(500):
            ensure_owner(session, f"owner-{number}-{'x' * 40}", 1)
    database.close()
    return path


def _opened(path: Path) -> Database:
    return Database(f"sqlite:///{path}")


def test_a_new_database_is_told_from_a_used_one(url: str) -> None:
    database = Database(url)
    assert database.what_is_lost() == ("is missing" if "sqlite" in url else "has no tables")
    database.migrate()
    assert database.what_is_lost() == "has no rows"
    with database.transaction() as session:
        ensure_owner(session, "ann", 1)
    assert database.what_is_lost() is None
    database.close()


def _touch(path: Path) -> None:
    path.write_bytes(b"")


def _connect(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x (y)")
        connection.execute("DROP TABLE x")
    connection.close()


@pytest.mark.parametrize(("make", "lost"), [(_touch, "is empty"), (_connect, "has no tables")])
def test_an_empty_file_is_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], None], lost: str
) -> None:
    path = tmp_path / "verandah.db"
    make(path)
    log = Path(f"{path}-wal")
    log.write_bytes(b"what may be wanted yet")
    before = path.read_bytes()
    if lost == "is empty":
        assert _opened(path).what_is_lost() == lost
        assert log.read_bytes() == b"what may be wanted yet"
    else:
        log.unlink()
        assert _opened(path).what_is_lost() == lost
    assert path.read_bytes() == before


def test_another_programs_file_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (line)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Unavailable, match=f"{path} is another program's .*'notes'"):
        _opened(path).what_is_lost()
    assert path.read_bytes() == before
    assert not Path(f"{path}-wal").exists()


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_are_told_with_path_and_remedy(used: Path, tmp_path: Path, seed: int) -> None:
    """In the schema, in rows, anywhere: never a traceback."""
    path = tmp_path / "verandah.db"
    draw, data = random.Random(seed), bytearray(used.read_bytes())
    for _ in range(200):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    with pytest.raises(Unavailable, match="is damaged") as told:
        _opened(path).what_is_lost()
    assert f"{path} 'PRAGMA integrity_check'" in str(told.value)
    assert "restore the file from a backup" in str(told.value)


@pytest.mark.parametrize("table", ["jobs", "files", "checkpoints", "owners"])
def test_a_table_that_is_gone_is_told_with_the_remedy(
    used: Path, tmp_path: Path, table: str
) -> None:
    path = Path(shutil.copy(used, tmp_path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DROP TABLE {table}")
        connection.commit()
    with pytest.raises(Unavailable, match=rf"{path} has lost the table '{table}'.*rebuild"):
        _opened(path).migrate()


@pytest.mark.parametrize("size", [100, 4096, 40_000])
def test_a_file_that_was_cut_is_told(used: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "verandah.db"
    path.write_bytes(used.read_bytes()[:size])
    with pytest.raises(Unavailable, match=f"{path} is damaged"):
        _opened(path).what_is_lost()


def test_what_breaks_while_it_is_used_is_told_too(used: Path, tmp_path: Path) -> None:
    path = tmp_path / "verandah.db"
    shutil.copy(used, path)
    database = _opened(path)
    with database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO jobs (id, owner, status, model, training_file, seed, hyperparameters,"
                " metadata, created_at, cancel_requested, attempt, step, losses) SELECT 'ftjob-1',"
                " id, 'queued', 'base', 'f', 7, '{}', '{broken', 1, 0, 0, 0, 0 FROM owners LIMIT 1"
            )
        )
    with database.reading() as session:
        owner = session.scalar(text("SELECT owner FROM jobs"))
    with pytest.raises(Unavailable, match=f"{path} is damaged"):
        JobQueue(database).list(str(owner))
    database.close()


@pytest.mark.parametrize(
    ("code", "message", "remedy"),
    [
        (sqlite3.SQLITE_READONLY, "attempt to write a readonly database", "writable"),
        (sqlite3.SQLITE_CANTOPEN, "unable to open database file", "restore the file"),
        (sqlite3.SQLITE_IOERR, "disk I/O error", "make room"),
        (sqlite3.SQLITE_FULL, "database or disk is full", "make room"),
    ],
)
def test_each_failure_has_its_remedy(
    used: Path, tmp_path: Path, code: int, message: str, remedy: str
) -> None:
    path = tmp_path / "verandah.db"
    shutil.copy(used, path)
    database = _opened(path)
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    with pytest.raises(Unavailable, match=remedy) as told, database.transaction():
        raise exc.OperationalError("a statement", {}, error)
    assert str(path) in str(told.value)
    assert isinstance(told.value, DiskFull) is (code == sqlite3.SQLITE_FULL)
    database.close()


def test_room_is_kept_for_changes_on_a_full_disk(used: Path, tmp_path: Path) -> None:
    path = tmp_path / "verandah.db"
    shutil.copy(used, path)
    database = _opened(path)
    database.reserve_room()
    sizes = [file.stat().st_size for file in (path, Path(f"{path}-wal"))]
    assert min(sizes) > 2**20
    for number in range(300):
        with database.transaction() as session:
            ensure_owner(session, f"more-{number}", 1)
    database.reserve_room()
    assert [file.stat().st_size for file in (path, Path(f"{path}-wal"))] == sizes
    database.close()
