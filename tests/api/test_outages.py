"""The database locked or gone, the disk full: 503 as the OpenAI API has it, and answers go on."""

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

import server.api.jobs.event_hub
from server.jobs.files import file_store
from tests.api.jobs.test_training import claim, upload
from tests.api.running import Running, Serve, eventually

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def served(serve: Serve) -> Running:
    """A server that does not wait long for a lock."""
    return serve()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    yield
    connection.rollback()
    connection.close()


@contextmanager
def gone(path: Path) -> Iterator[None]:
    away = path.with_suffix(".away")
    path.rename(away)
    yield
    assert not path.exists(), "a new database was made"
    away.rename(path)


def says(served: Running) -> str:
    answer = served.sdk.chat.completions.create(
        model="base",
        messages=HELLO,  # type: ignore[arg-type]
        max_tokens=2,
    )
    return answer.choices[0].finish_reason


@pytest.mark.parametrize("how", [locked, gone])
def test_a_database_that_fails_is_503_and_answers_go_on(
    served: Running, tmp_path: Path, how: type
) -> None:
    file = upload(served)
    with how(tmp_path / "verandah.db"):
        with pytest.raises(openai.InternalServerError) as failed:
            served.sdk.fine_tuning.jobs.create(model="base", training_file=file)
        assert failed.value.status_code == 503
        assert (failed.value.type, failed.value.code) == ("server_error", "unavailable")
        assert "verandah.db" in failed.value.message
        assert says(served) == "length"
        assert served.http.get("/health").status_code == 200
    job = served.sdk.fine_tuning.jobs.create(model="base", training_file=file)
    assert [one.id for one in served.sdk.fine_tuning.jobs.list()] == [job.id]


def test_who_only_reads_does_not_notice_a_lock(served: Running, tmp_path: Path) -> None:
    file = upload(served)
    with locked(tmp_path / "verandah.db"):
        assert served.sdk.files.retrieve(file).id == file
        assert list(served.sdk.fine_tuning.jobs.list()) == []


def test_a_stream_of_events_outlives_an_outage(
    served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.api.jobs.event_hub, "_POLL_S", 0.02)
    served.sdk.fine_tuning.jobs.create(model="base", training_file=upload(served))
    job = claim(served)
    seen: list[str] = []

    def follow() -> None:
        path = f"/v1/fine_tuning/jobs/{job.id}/events?stream=true"
        with served.http.stream("GET", path) as response:
            for line in response.iter_lines():
                seen.append(line)

    listener = threading.Thread(target=follow)
    listener.start()
    assert eventually(lambda: any("started" in line for line in seen))
    with gone(tmp_path / "verandah.db"):
        assert not eventually(lambda: not listener.is_alive(), 0.3)
    served.services.jobs.fail(job, "training_failed", "because")
    listener.join(10)
    assert "data: [DONE]" in seen
    assert any("because" in line for line in seen)


def test_a_full_disk_keeps_nothing_of_an_upload_and_says_so(
    served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(served)
    kept = sorted((tmp_path / "files").rglob("*"))

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/path")

    with monkeypatch.context() as disk:
        disk.setattr(file_store.os, "fsync", full)  # type: ignore[attr-defined]
        with pytest.raises(openai.InternalServerError, match="disk is full") as failed:
            upload(served)
    assert failed.value.status_code == 503
    assert "/a/path" not in failed.value.message
    assert sorted((tmp_path / "files").rglob("*")) == kept
    upload(served)
