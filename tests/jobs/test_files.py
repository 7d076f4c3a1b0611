"""Files are kept whole, apart, and as long as they are needed."""

import hashlib
import io
import os
import time
from pathlib import Path

import pytest

from server.errors import Conflict, FileDamaged, InvalidRequest, NotFound, RequestTooLarge
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
