"""The database locked or gone, the disk full: 503 as the OpenAI API has it, and answers go on."""

import errno
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from server.api import sse
from server.api.jobs import event_hub
from server.jobs.files import file_bytes
from server.jobs.queue.job_queue import JobQueue, News
from server.tenancy.principal import DEFAULT_OWNER, SERVER_ADMIN
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


def test_an_empty_file_in_the_database_s_place_is_told_with_the_remedy(
    served: Running, tmp_path: Path
) -> None:
    with gone(tmp_path / "verandah.db"):
        (tmp_path / "verandah.db").touch()
        answer = served.http.get("/v1/files")
        (tmp_path / "verandah.db").unlink()
    assert answer.status_code == 503
    assert "another file than before, put the old one back" in answer.json()["error"]["message"]
    assert served.http.get("/v1/files").status_code == 200


def test_who_only_reads_does_not_notice_a_lock(served: Running, tmp_path: Path) -> None:
    file = upload(served)
    with locked(tmp_path / "verandah.db"):
        assert served.sdk.files.retrieve(file).id == file
        assert list(served.sdk.fine_tuning.jobs.list()) == []


def test_a_stream_of_events_outlives_an_outage(
    served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "_POLL_S", 0.02)
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
        disk.setattr(file_bytes.os, "fsync", full)  # type: ignore[attr-defined]
        with pytest.raises(openai.InternalServerError, match="disk is full") as failed:
            upload(served)
    assert failed.value.status_code == 503
    assert "/a/path" not in failed.value.message
    assert sorted((tmp_path / "files").rglob("*")) == kept
    upload(served)


def test_answers_and_reading_do_not_wait_for_a_locked_database(
    served: Running, tmp_path: Path
) -> None:
    file = upload(served)
    refused: list[openai.APIStatusError] = []

    def create() -> None:
        try:
            served.sdk.fine_tuning.jobs.create(model="base", training_file=file)
        except openai.APIStatusError as error:
            refused.append(error)

    with locked(tmp_path / "verandah.db"), ThreadPoolExecutor(64) as writers:
        began = time.monotonic()
        waiting = [writers.submit(create) for _ in range(64)]
        time.sleep(0.2)
        slowest = 0.0
        while not all(one.done() for one in waiting):
            asked = time.monotonic()
            assert says(served) == "length"
            assert served.http.get("/ready").json()["checks"]["database"] is True
            assert served.http.get("/health").status_code == 200
            assert served.sdk.files.retrieve(file).id == file
            slowest = max(slowest, time.monotonic() - asked)
        took = time.monotonic() - began
    assert slowest < 2, "four requests while 64 wait for the lock"
    assert len(refused) == 64 and took < 12
    assert {error.status_code for error in refused} == {503}
    assert {error.response.headers["retry-after"] for error in refused} == {"3"}


STREAM = "/v1/fine_tuning/jobs/{}/events?stream=true"


def test_streams_of_events_are_bounded_and_their_places_come_back(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "MAX_STREAMS_OF_OWNER", 2)
    path = STREAM.format(
        served.sdk.fine_tuning.jobs.create(model="base", training_file=upload(served)).id
    )
    with served.http.stream("GET", path), served.http.stream("GET", path):
        refused = served.http.get(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
        assert "close one" in refused.json()["error"]["message"]
        assert served.http.get(path.removesuffix("?stream=true")).status_code == 200

    def opens() -> bool:
        with served.http.stream("GET", path) as response:
            return response.status_code == 200

    assert eventually(opens)
    assert served.http.get(STREAM.format("ftjob-none")).status_code == 404
    assert eventually(opens), "a refused stream takes no place"


@pytest.mark.parametrize("how", ["revoked", "narrowed"])
def test_a_stream_of_events_ends_with_the_rights_of_its_key(served: Running, how: str) -> None:
    keys = served.services.tenants.keys
    key, text = keys.create(DEFAULT_OWNER, "key", by=SERVER_ADMIN)
    path = STREAM.format(
        served.sdk.fine_tuning.jobs.create(model="base", training_file=upload(served)).id
    )
    job = claim(served)
    headers = {"authorization": f"Bearer {text}"}
    with served.http.stream("GET", path, headers=headers) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("id: ")
        if how == "revoked":
            keys.revoke(DEFAULT_OWNER, key.id)
        else:
            keys.change(DEFAULT_OWNER, key.id, scopes=["files"])
        served.services.keys.refresh()
        served.services.jobs.append_event(job, "info", "a secret")
        rest = "".join(lines)
    assert "a secret" not in rest and "[DONE]" not in rest


def test_streams_of_one_job_hear_the_same_with_one_poll_for_all(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "_POLL_S", 0.05)
    polls: list[int] = []
    news = JobQueue.news

    def counted(self: JobQueue, jobs: Iterable[str]) -> dict[str, News]:
        asked = [*jobs]
        polls.append(len(asked))
        return news(self, asked)

    monkeypatch.setattr(JobQueue, "news", counted)
    served.sdk.fine_tuning.jobs.create(model="base", training_file=upload(served))
    job = claim(served)
    for number in range(230):  # more than two pages before anybody listens
        served.services.jobs.append_event(job, "info", f"early {number}")

    def heard(_: int) -> list[str]:
        with served.http.stream("GET", STREAM.format(job.id)) as response:
            return [line for line in response.iter_lines() if line.startswith("data: ")]

    with ThreadPoolExecutor(12) as listeners:
        streams = [listeners.submit(heard, number) for number in range(12)]
        time.sleep(0.3)
        for number in range(40):
            served.services.jobs.append_event(job, "info", f"late {number}")
        served.services.jobs.finish(job, "pirate@1", 1)
        told = [stream.result(20) for stream in streams]
    assert set(polls) == {1}, "one job, however many streams"
    assert all(lines == told[0] for lines in told)
    messages = [json.loads(line[6:])["message"] for line in told[0][:-1]]
    assert told[0][-1] == "data: [DONE]"
    assert [line for line in messages if line[:5] in ("early", "late ")] == [
        *(f"early {number}" for number in range(230)),
        *(f"late {number}" for number in range(40)),
    ]


def test_who_does_not_read_events_is_dropped_and_holds_no_memory(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "STALLED_S", 0.5)
    monkeypatch.setattr(event_hub, "_COMMENT_S", 0.1)
    monkeypatch.setattr(event_hub, "MAX_STREAMS_OF_OWNER", 1)
    served.sdk.fine_tuning.jobs.create(model="base", training_file=upload(served))
    job = claim(served)
    for _ in range(30):
        served.services.jobs.append_event(job, "info", "x" * 500_000)
    address = served.http.base_url
    with socket.create_connection((address.host, address.port or 80)) as mute:
        mute.sendall(f"GET {STREAM.format(job.id)} HTTP/1.1\r\nhost: here\r\n\r\n".encode())
        assert mute.recv(12) == b"HTTP/1.1 200"
        assert eventually(lambda: served.http.get(STREAM.format("ftjob-none")).status_code == 404)
