"""The serving process keeps its home tidy, at start and now and then."""

import io
import os
import time
from pathlib import Path

import pytest

from server.config import Settings
from server.tenancy.principal import DEFAULT_OWNER
from server.wiring.building import Records
from server.wiring.homes import open_home
from server.wiring.housekeeping import housekeeping
from tests.api.running import eventually


def _old(path: Path, content: bytes | None = None) -> Path:
    if content is None:
        path.mkdir(parents=True)
    else:
        path.write_bytes(content)
    past = time.time() - 2 * 24 * 3600
    os.utime(path, (past, past))
    return path


def _create(records: Records, **options: int) -> str:
    source = io.BytesIO(b"a line")
    return records.files.create(DEFAULT_OWNER, "x", "fine-tune", source, **options).id


def test_leftovers_go_at_start_and_later_and_what_is_needed_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="server")
    settings = Settings(home=tmp_path)
    with open_home(settings) as records:
        file = _create(records)
        job = records.jobs.create(DEFAULT_OWNER, "base", file)
        kept = _old(tmp_path / "training" / job.id)
        gone = [
            _old(tmp_path / "files" / ".uploads" / "half", b"x"),
            _old(tmp_path / "files" / "file-dead", b"x"),
            _old(tmp_path / "training" / "ftjob-ended"),
            _old(tmp_path / "adapters" / ".trash" / "dead"),
        ]
        fresh = tmp_path / "files" / ".uploads" / "fresh"
        fresh.write_bytes(b"x")
        with housekeeping(settings, records, every_s=0.05):
            assert eventually(lambda: not any(path.exists() for path in gone))
            later = _old(tmp_path / "files" / ".uploads" / "later", b"x")
            assert eventually(lambda: not later.exists())
        assert kept.exists()
        assert fresh.exists()
        with records.files.verified(DEFAULT_OWNER, file) as source:
            assert source.read() == b"a line"
    assert f"removed {gone[0]}" in caplog.text


def test_an_expired_file_goes_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger="server")
    settings = Settings(home=tmp_path)
    with open_home(settings) as records:
        kept, file = _create(records), _create(records, expires_after_s=3600)
        monkeypatch.setattr(records.database, "_clock", lambda: time.time() + 3601)
        with housekeeping(settings, records, every_s=60):
            assert eventually(lambda: f"file {file} (6 bytes) of default expired" in caplog.text)
        assert [path.name for path in (tmp_path / "files").glob("file-*")] == [kept]


def test_a_task_that_fails_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake")

    settings = Settings(home=tmp_path)
    with open_home(settings) as records:
        monkeypatch.setattr(records.files, "expire", fail)
        gone = _old(tmp_path / "files" / ".uploads" / "half", b"x")
        with housekeeping(settings, records, every_s=60):
            assert eventually(lambda: not gone.exists())
    assert "a mistake" in caplog.text
