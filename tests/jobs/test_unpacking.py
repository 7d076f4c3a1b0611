"""What gzip packed comes back as it was, and what only looks like gzip takes little and is told."""

import gzip
import hashlib
import io
import random
import time
import zlib
from functools import partial

import pytest

from server.errors import InvalidRequest, RequestTooLarge
from server.jobs.files import unpacking
from server.jobs.files.file_store import Files
from server.jobs.files.unpacking import unpacked
from tests.jobs.conftest import Jobs

LINES = b"".join(b'{"prompt": "%d", "completion": "%d"}\n' % (n, n * n) for n in range(40_000))
NOISE = random.Random(1).randbytes(3 * 2**20)
gzipped = partial(gzip.compress, mtime=0)  # without the time, or each process has other tests
EMPTY = gzipped(b"")


def whole(content: bytes) -> bytes:
    return b"".join(unpacked(io.BytesIO(content))[1])


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (gzipped(LINES), LINES),
        (gzipped(NOISE), NOISE),
        (gzipped(LINES, 0), LINES),
        (gzipped(LINES[:100]) + gzipped(LINES[100:]), LINES),
        (gzipped(LINES) + b"\0" * 100_000, LINES),
        (gzipped(b"a") + b"\0" * 70_000 + gzipped(b"b"), b"ab"),
        (EMPTY * 3 + gzipped(b"a") + EMPTY, b"a"),
        (gzipped(gzipped(b"a")), gzipped(b"a")),
        (EMPTY, b""),
        (b"", b""),
        (LINES, LINES),
    ],
)
def test_what_was_packed_comes_back(sent: bytes, kept: bytes) -> None:
    assert whole(sent) == kept
    assert unpacked(io.BytesIO(sent))[0] == sent.startswith(b"\x1f\x8b")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (gzipped(LINES)[:-9], "gzip and is cut off"),
        (gzipped(LINES)[:-1], "gzip and is cut off"),
        (gzipped(LINES)[:5], "gzip and is cut off"),
        (b"\x1f\x8b", "gzip and is cut off"),
        (b"\x1f\x8b" + b"x" * 100, "gzip and is damaged near byte 0"),
        (gzipped(LINES)[:-8] + b"12345678", "gzip and is damaged"),
        (gzipped(LINES) + b"more", "gzip and is damaged"),
        (b"PK\x03\x04...", "compressed with zip"),
        (b"\x28\xb5\x2f\xfd...", "compressed with zstd"),
        (b"BZh9...", "compressed with bzip2"),
        (b"\xfd7zXZ\x00...", "compressed with xz"),
    ],
)
def test_other_bytes_are_refused_with_the_reason(sent: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        whole(sent)
    assert caught.value.param == "file"


def bomb() -> bytes:
    """64 KiB that would be 64 MiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()


def test_bombs_stop_early() -> None:
    given = 0
    with pytest.raises(InvalidRequest, match="unpacks to more than 250 times its size"):
        for chunk in unpacked(io.BytesIO(bomb()))[1]:
            given += len(chunk)
    assert given <= 2**20 + unpacking.MOST_RATIO * 2**16
    began = time.process_time()
    named = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 30_000_000  # a header without an end
    for sent in (EMPTY * 1_000_000, named):
        with pytest.raises(InvalidRequest, match=r"of more than 10000 parts|is cut off"):
            whole(sent)
    assert time.process_time() - began < 5


def test_a_packed_file_is_stored_unpacked(jobs: Jobs) -> None:
    for sent, kept in (("a.jsonl.gz", "a.jsonl"), ("B.GZ", "B"), (".gz", ".gz"), ("c", "c")):
        file = jobs.files.create("ann", sent, "fine-tune", io.BytesIO(gzipped(LINES[:900])))
        assert (file.filename, file.bytes) == (kept, len(LINES[:900]))
        assert file.sha256 == hashlib.sha256(LINES[:900]).hexdigest()
        assert jobs.files.path("ann", file.id).read_bytes() == LINES[:900]
    assert jobs.files.create("ann", "d.gz", "fine-tune", io.BytesIO(LINES[:900])).filename == "d.gz"
    with pytest.raises(InvalidRequest, match="names a folder"):
        jobs.files.create("ann", "...gz", "fine-tune", io.BytesIO(EMPTY))


def test_the_limit_is_of_what_is_unpacked(jobs: Jobs) -> None:
    folder = jobs.files.folder
    small = Files(jobs.files._database, folder, max_bytes=1000)
    before = sorted(folder.rglob("*"))
    for content in (LINES, gzipped(LINES)):
        with pytest.raises(RequestTooLarge, match="content is over the limit of 1000 bytes"):
            small.create("ann", "a", "fine-tune", io.BytesIO(content))
    assert sorted(folder.rglob("*")) == before
