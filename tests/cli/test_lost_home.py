"""A home that has lost its database is refused by each command, and `rebuild` mends it."""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters_store.store import AdapterStore
from server.__main__ import main
from server.config import Settings
from server.db.session import Database
from server.errors import Unavailable
from server.tenancy.principal import DEFAULT_OWNER
from server.wiring import homes
from tests.adapters_store.conftest import MakeManifest, MakeTensors, make_manifest, make_tensors
from tests.db.postgres import schema_of

__all__ = ["make_manifest", "make_tensors"]

COMMANDS = (["serve", "--port", "0"], ["worker"])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A used home with one file, its database closed."""
    home = tmp_path / "home"
    with homes.open_home(Settings(home=home)) as records:
        records.files.create(DEFAULT_OWNER, "x.jsonl", "fine-tune", io.BytesIO(b"a line"))
    return home


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _replace_by_a_new_one(path: Path) -> None:
    path.unlink()
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()


LOSSES: dict[str, Callable[[Path], None]] = {
    "is missing": Path.unlink,
    "is empty": _empty,
    "has no rows": _replace_by_a_new_one,
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_database_is_refused(
    home: Path, command: list[str], loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "verandah.db"
    LOSSES[loss](path)
    before = path.read_bytes() if path.exists() else None
    assert main([*command, "--home", str(home)]) == 1
    told = capsys.readouterr().err
    assert f"the database {path} {loss}, but {home / 'files'} holds 1 (file-" in told
    assert "Restore the database from a backup" in told
    assert "verandah rebuild" in told
    assert (path.read_bytes() if path.exists() else None) == before
    assert len(list((home / "files").glob("file-*"))) == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_rebuilding_keeps_files_and_adapters(
    home: Path,
    loss: str,
    make_manifest: MakeManifest,
    make_tensors: MakeTensors,
    capsys: pytest.CaptureFixture[str],
) -> None:
    AdapterStore(home / "adapters").publish(DEFAULT_OWNER, "p", make_manifest(), make_tensors())
    LOSSES[loss](home / "verandah.db")
    assert main(["rebuild", "--home", str(home)]) == 0
    (name,) = (path.name for path in (home / "files").glob("file-*"))
    shown = capsys.readouterr()
    assert shown.out == f"{name}\n"
    assert "1 files got new rows; 1 adapters are there and need none" in shown.err
    with homes.open_home(Settings(home=home)) as records:
        with records.files.verified(DEFAULT_OWNER, name) as source:
            assert source.read() == b"a line"
        assert records.store.names(DEFAULT_OWNER) == ["p"]
    assert main(["rebuild", "--home", str(home)]) == 0
    assert "0 files got new rows" in capsys.readouterr().err


def test_adapters_alone_are_enough_to_miss_the_database(
    tmp_path: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    store = AdapterStore(tmp_path / "adapters")
    store.publish(DEFAULT_OWNER, "imported", make_manifest(), make_tensors())
    settings = Settings(home=tmp_path)
    with pytest.raises(Unavailable, match=r"is missing, but .*adapters holds 1 \(imported\)"):
        homes.open_home(settings).__enter__()
    _replace_by_a_new_one_at(tmp_path)
    with homes.open_home(settings):
        pass  # who only imports has no rows: nothing is lost
    (tmp_path / "verandah.db").unlink()
    _replace_by_a_new_one_at(tmp_path)
    store.publish(DEFAULT_OWNER, "trained", make_manifest(job="ftjob-1"), make_tensors())
    with pytest.raises(Unavailable, match=r"has no rows, but .*adapters holds 1 \(trained\)"):
        homes.open_home(settings).__enter__()


def _replace_by_a_new_one_at(home: Path) -> None:
    database = Database(f"sqlite:///{home / 'verandah.db'}")
    database.migrate()
    database.close()


def test_a_job_halfway_is_enough_too(tmp_path: Path) -> None:
    (tmp_path / "training" / "ftjob-0123").mkdir(parents=True)
    with pytest.raises(Unavailable, match=r"is missing, but .*training holds 1 .ftjob-0123"):
        homes.open_home(Settings(home=tmp_path)).__enter__()


@pytest.mark.services
def test_an_empty_postgresql_beside_full_folders_is_refused(home: Path, postgres_url: str) -> None:
    with schema_of(postgres_url) as url:
        settings = Settings(home=home, database_url=url)
        with pytest.raises(Unavailable, match=f"has no tables, but {home / 'files'} holds 1"):
            homes.open_home(settings).__enter__()
        with homes.rebuilt_home(settings) as records:
            assert len(records.files.adopt(DEFAULT_OWNER)) == 1
        with homes.open_home(settings) as records:
            assert len(records.files.list(DEFAULT_OWNER).items) == 1


@pytest.mark.parametrize("command", [*COMMANDS, ["rebuild"]], ids=lambda command: command[0])
def test_a_damaged_database_ends_no_command_in_a_traceback(
    home: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "verandah.db"
    path.write_bytes(os.urandom(50_000))
    assert main([*command, "--home", str(home)]) == 1
    told = capsys.readouterr().err
    assert f"the database {path} is damaged" in told
    assert "integrity_check" in told


def test_a_new_home_and_a_used_one_are_opened(tmp_path: Path) -> None:
    for _ in range(2):
        with homes.open_home(Settings(home=tmp_path / "new")) as records:
            assert records.files.list(DEFAULT_OWNER).items == ()


@pytest.mark.parametrize("folder", ["adapters", "files"])
def test_a_folder_that_is_gone_is_refused_until_it_is_made(home: Path, folder: str) -> None:
    shutil.rmtree(home / folder)
    for _ in range(2):
        with pytest.raises(Unavailable, match=f"the folder {home / folder} is gone, .*mount its"):
            homes.open_home(Settings(home=home)).__enter__()
        assert not (home / folder).exists()
    (home / folder).mkdir()
    with homes.open_home(Settings(home=home)) as records:
        assert len(records.files.list(DEFAULT_OWNER).items) == 1


@pytest.mark.parametrize("folder", ["porting", "training"])
def test_a_folder_for_unfinished_work_is_made_anew(home: Path, folder: str) -> None:
    shutil.rmtree(home / folder)
    with homes.open_home(Settings(home=home)):
        assert (home / folder).is_dir()


def test_files_that_are_gone_are_told_at_start(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(home / "files")
    (home / "files").mkdir()
    with homes.open_home(Settings(home=home)):
        assert f"1 files are in the database and not in {home / 'files'}" in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("folder", ["adapters", "files", "training", "porting"])
def test_a_folder_that_cannot_be_written_is_told_at_start(
    home: Path,
    folder: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = homes.tempfile.TemporaryFile  # type: ignore[attr-defined]

    def refuse(dir: Path) -> object:
        if dir == home / folder:
            raise OSError(number, os.strerror(number), str(dir))
        return real(dir=dir)

    monkeypatch.setattr(homes.tempfile, "TemporaryFile", refuse)  # type: ignore[attr-defined]
    assert main(["serve", "--port", "0", "--home", str(home)]) == 1
    told = capsys.readouterr().err
    assert f"the folder {home / folder} cannot be written ({os.strerror(number)})" in told
    assert "read and write" in told


@pytest.mark.parametrize("folder", ["files", "files/.uploads", "adapters/.staging", "porting"])
def test_a_file_in_place_of_a_folder_is_told_at_start(home: Path, folder: str) -> None:
    shutil.rmtree(home / folder, ignore_errors=True)
    (home / folder).write_text("x")
    with pytest.raises(Unavailable, match=f"the folder {home / folder} cannot be written"):
        homes.open_home(Settings(home=home)).__enter__()


def test_a_full_disk_is_no_reason_not_to_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(dir: Path) -> object:
        raise OSError(errno.ENOSPC, "full", str(dir))

    monkeypatch.setattr(homes.tempfile, "TemporaryFile", full)  # type: ignore[attr-defined]
    with homes.open_home(Settings(home=home)) as records:
        (file,) = records.files.list(DEFAULT_OWNER).items
        records.files.delete(DEFAULT_OWNER, file.id)
