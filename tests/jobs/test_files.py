"""Files are kept whole, apart, and as long as they are needed."""

import errno
import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.errors import Conflict, FileDamaged, InvalidRequest, NotFound, RequestTooLarge
from server.jobs.files import file_store
from server.jobs.files.file_store import Files
from tests.jobs.conftest import Jobs
from tests.writing import WRITING


class Broken(io.BytesIO):
    """A connection that breaks after some bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise ConnectionResetError
        return super().read(10)


def _kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_reads_back(jobs: Jobs) -> None:
    content = os.urandom(1000)
    file = jobs.files.create("ann", "étude (1).jsonl", "fine-tune", io.BytesIO(content))
    assert jobs.files.get("ann", file.id) == file
    assert (file.bytes, file.filename, file.status) == (1000, "étude (1).jsonl", "processed")
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert file.created_at == 1_000_000
    assert jobs.files.path("ann", file.id).read_bytes() == content


@pytest.mark.parametrize("name", [*WRITING, "語" * 255, "a\u200d'\"%;é.jsonl", "...jsonl"])
def test_a_name_keeps_every_character(jobs: Jobs, name: str) -> None:
    file = jobs.files.create("ann", name, "fine-tune", io.BytesIO(b"x"))
    assert jobs.files.get("ann", file.id).filename == name
    named = jobs.files.named("ann", name, "fine-tune")
    assert named is not None and named.id == file.id


def test_owners_are_apart(jobs: Jobs) -> None:
    file_id = jobs.file("ann")
    for act in (jobs.files.get, jobs.files.path, jobs.files.delete):
        with pytest.raises(NotFound, match=file_id):
            act("bob", file_id)
    assert jobs.files.list("bob").items == ()
    assert jobs.files.path("ann", file_id).exists()


@pytest.mark.parametrize("file_id", ["", "../verandah.db", "file-\0", "\ud800"])
def test_an_unknown_id_is_not_found(jobs: Jobs, file_id: str) -> None:
    for act in (jobs.files.get, jobs.files.path, jobs.files.delete):
        with pytest.raises(NotFound):
            act("ann", file_id)


def test_a_file_over_the_limit_leaves_nothing(jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(RequestTooLarge, match="limit of 1000 bytes"):
        jobs.files.create("ann", "x", "fine-tune", io.BytesIO(b"x" * 1001))
    assert _kept(tmp_path / "files") == []
    assert jobs.files.list("ann").items == ()


def test_a_broken_upload_leaves_nothing(jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError):
        jobs.files.create("ann", "x", "fine-tune", Broken(b"x" * 50))
    assert _kept(tmp_path / "files") == []
    assert jobs.files.list("ann").items == ()


def test_a_failed_rename_leaves_no_row(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr(os, "rename", fail)
        jobs.files.create("ann", "x", "fine-tune", io.BytesIO(b"x"))
    assert _kept(tmp_path / "files") == []
    assert jobs.files.list("ann").items == ()


@pytest.mark.parametrize(
    ("param", "filename", "purpose"),
    [
        ("filename", "", "fine-tune"),
        ("filename", "a\0b", "fine-tune"),
        ("filename", "x" * 256, "fine-tune"),
        ("filename", "a\nb", "fine-tune"),
        ("filename", "a\x9bb", "fine-tune"),
        ("filename", "a\u202efdp.jsonl", "fine-tune"),
        ("filename", "a\ud800", "fine-tune"),
        ("filename", "..", "fine-tune"),
        ("filename", "../a.jsonl", "fine-tune"),
        ("filename", "C:\\a.jsonl", "fine-tune"),
        ("purpose", "x", ""),
        ("purpose", "x", "p" * 65),
    ],
)
def test_a_bad_field_is_named(jobs: Jobs, param: str, filename: str, purpose: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        jobs.files.create("ann", filename, purpose, io.BytesIO(b"x"))
    assert raised.value.param == param


def test_files_page_both_ways(jobs: Jobs) -> None:
    ids = [
        jobs.files.create("ann", f"{i}", purpose, io.BytesIO(b"x")).id
        for i, purpose in enumerate(["fine-tune", "other", "fine-tune"])
    ]
    assert [file.id for file in jobs.files.list("ann").items] == ids[::-1]
    page = jobs.files.list("ann", order="asc", limit=1, after=ids[0])
    assert ([file.id for file in page.items], page.has_more) == ([ids[1]], True)
    tuned = jobs.files.list("ann", purpose="fine-tune")
    assert [file.id for file in tuned.items] == [ids[2], ids[0]]


def test_a_deleted_file_is_gone(jobs: Jobs, tmp_path: Path) -> None:
    jobs.files.delete("ann", jobs.file("ann"))
    assert jobs.files.list("ann").items == ()
    assert _kept(tmp_path / "files") == []


def test_a_file_is_kept_while_a_job_needs_it(jobs: Jobs) -> None:
    job = jobs.create("ann")
    with pytest.raises(Conflict, match=job.id):
        jobs.files.delete("ann", jobs.file("ann"))
    jobs.claim()
    with pytest.raises(Conflict, match=job.id):
        jobs.files.delete("ann", jobs.file("ann"))
    jobs.queue.cancel("ann", job.id)
    jobs.clock.now += 100
    jobs.queue.claim("w2", 1)
    jobs.files.delete("ann", jobs.file("ann"))
    assert jobs.queue.get("ann", job.id).training_file == jobs.file("ann")


def test_a_file_that_is_not_what_was_uploaded_is_not_read(jobs: Jobs) -> None:
    file = jobs.files.create("ann", "x.jsonl", "fine-tune", io.BytesIO(b"line\nline\n"))
    with jobs.files.verified("ann", file.id) as source:
        assert source.read() == b"line\nline\n"
    path = jobs.files.path("ann", file.id)
    os.truncate(path, 5)
    with pytest.raises(FileDamaged, match="5 bytes, 10 were uploaded"):
        jobs.files.verified("ann", file.id).__enter__()
    path.unlink()
    with pytest.raises(FileDamaged, match="is gone"):
        jobs.files.verified("ann", file.id).__enter__()
    with pytest.raises(NotFound):
        jobs.files.verified("bob", file.id).__enter__()


def test_old_bytes_without_a_row_are_swept(jobs: Jobs, tmp_path: Path) -> None:
    kept = jobs.files.path("ann", jobs.file("ann"))
    folder = tmp_path / "files"
    old = [folder / "file-dead", folder / ".uploads" / "dead"]
    fresh = [folder / "file-new", folder / ".uploads" / "new"]
    for path in (*old, *fresh):
        path.write_bytes(b"x")
    past = time.time() - 2 * 24 * 3600
    for path in (*old, kept):
        os.utime(path, (past, past))
    assert jobs.files.sweep() == 2
    assert sorted(_kept(folder)) == sorted([kept.name, "file-new", "new"])


def _age(*paths: Path) -> None:
    past = time.time() - 2 * 24 * 3600
    for path in paths:
        os.utime(path, (past, past))


class Watched(io.BytesIO):
    """An upload during which something is done, after the first bytes."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(b"x" * 10)
        self._act = act

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            self._act()
        return super().read(size)


def test_an_upload_in_progress_is_no_leftover_whatever_the_clocks_say(
    jobs: Jobs, tmp_path: Path
) -> None:
    other = Files(jobs.database, tmp_path / "files", 1000)
    swept = []

    def sweep() -> None:
        _age(*(tmp_path / "files" / ".uploads").iterdir())
        swept.append(other.sweep())

    file = jobs.files.create("ann", "x", "fine-tune", Watched(sweep))
    assert swept == [0]
    _age(jobs.files.path("ann", file.id))
    assert other.sweep() == 0
    with jobs.files.verified("ann", file.id) as source:
        assert source.read() == b"x" * 10


@pytest.mark.parametrize("known", [True, False])
def test_files_that_the_database_lost_are_kept_and_get_new_rows(
    jobs: Jobs, tmp_path: Path, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if known:
        jobs.file()
    folder = tmp_path / "files"
    lost = [folder / f"file-{number:024x}" for number in range(11 if known else 1)]
    for path in lost:
        path.write_bytes(b"lines")
    (folder / "file-of-others").write_bytes(b"x")
    lost[0].write_bytes(b"step,train_loss,train_accuracy\n1,2,3\n")
    _age(*lost)
    assert jobs.files.sweep() == 0
    assert f"{len(lost)} files in {folder}" in caplog.text
    assert "verandah rebuild" in caplog.text
    assert jobs.files.adopt("ann") == [path.name for path in lost]
    assert jobs.files.adopt("ann") == []
    results = jobs.files.get("ann", lost[0].name)
    assert (results.purpose, results.filename) == ("fine-tune-results", f"{results.id}.csv")
    for path in lost[1:]:
        stored = jobs.files.get("ann", path.name)
        assert (stored.purpose, stored.filename) == ("fine-tune", f"{path.name}.jsonl")
        with jobs.files.verified("ann", path.name) as source:
            assert source.read() == b"lines"


def test_files_whose_bytes_are_gone_are_listed(jobs: Jobs) -> None:
    assert jobs.files.missing() == []
    jobs.files.path("ann", jobs.file()).unlink()
    assert jobs.files.missing() == [jobs.file()]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), OSError(5, "no"), IsADirectoryError()]
)
def test_a_file_that_cannot_be_read_is_told(
    jobs: Jobs, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jobs.files.path("ann", jobs.file())

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(FileDamaged, match=f"cannot be read .*restore {path}"):
        jobs.files.verified("ann", jobs.file()).__enter__()


def test_a_file_expires_and_is_not_there_from_that_moment(jobs: Jobs, tmp_path: Path) -> None:
    file = jobs.files.create("ann", "x", "fine-tune", io.BytesIO(b"x"), expires_after_s=3600)
    kept = jobs.file("ann")
    assert (file.created_at, file.expires_at) == (1_000_000, 1_003_600)
    jobs.clock.now += 3599
    assert jobs.files.get("ann", file.id) == file
    assert jobs.files.expire() == []
    jobs.clock.now += 1
    for act in (jobs.files.get, jobs.files.path, jobs.files.delete):
        with pytest.raises(NotFound, match=file.id):
            act("ann", file.id)
    with pytest.raises(NotFound, match=file.id):
        jobs.files.verified("ann", file.id).__enter__()
    with pytest.raises(InvalidRequest, match=file.id):
        jobs.queue.create("ann", "base", file.id)
    assert [one.id for one in jobs.files.list("ann").items] == [kept]
    assert _kept(tmp_path / "files") == sorted([file.id, kept])
    assert jobs.files.expire() == [file]
    assert jobs.files.expire() == []
    assert _kept(tmp_path / "files") == [kept]


def test_a_job_keeps_its_files_until_it_ends(jobs: Jobs, tmp_path: Path) -> None:
    file, valid = (
        jobs.files.create("ann", "x", "fine-tune", io.BytesIO(b"x"), expires_after_s=3600).id
        for _ in range(2)
    )
    job = jobs.queue.create("ann", "base", file, validation_file=valid)
    jobs.clock.now += 4000
    assert jobs.files.expire() == []
    with jobs.files.verified("ann", file, of_job=True) as source:
        assert source.read() == b"x"
    with pytest.raises(NotFound):
        jobs.files.get("ann", file)
    jobs.queue.cancel("ann", job.id)
    assert {one.id for one in jobs.files.expire()} == {file, valid}
    assert _kept(tmp_path / "files") == []


@pytest.mark.parametrize("seconds", [-1, 0, 3599, 30 * 24 * 3600 + 1, 10**30])
def test_a_life_out_of_bounds_is_refused(jobs: Jobs, tmp_path: Path, seconds: int) -> None:
    with pytest.raises(InvalidRequest, match="not between 3600") as refused:
        jobs.files.create("ann", "x", "fine-tune", io.BytesIO(b"x"), expires_after_s=seconds)
    assert refused.value.param == "expires_after[seconds]"
    assert _kept(tmp_path / "files") == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_file_whose_bytes_cannot_go_keeps_its_row(
    jobs: Jobs, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = jobs.file()

    def refuse(path: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as disk:
        disk.setattr(Path, "unlink", refuse)
        with pytest.raises(OSError, match=file):
            jobs.files.delete("ann", file)
    with jobs.files.verified("ann", file) as source:
        assert source.read() == b"{}"


def test_files_that_jobs_keep_do_not_keep_others(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store, "_AT_ONCE", 1)
    kept, free = (
        jobs.files.create("ann", "x", "fine-tune", io.BytesIO(b"x"), expires_after_s=3600).id
        for _ in range(2)
    )
    jobs.queue.create("ann", "base", kept)
    jobs.clock.now += 4000
    assert [one.id for one in jobs.files.expire()] == [free]
