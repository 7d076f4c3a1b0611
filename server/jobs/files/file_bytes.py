"""The bytes of files, in a folder under their ids. Knows no database and no owners.

While a file is uploaded its bytes are locked (flock), so that no other process takes them for what
a crash has left.
"""

import fcntl
import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from server.errors import FileDamaged, RequestTooLarge

log = logging.getLogger(__name__)

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Upload:
    """Bytes that are on the disk and have no id yet."""

    path: Path
    size: int
    sha256: str


class FileBytes:
    """`folder` is made if it is missing; `uploads`, in it, has what is being uploaded."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.uploads = folder / ".uploads"
        self._max_bytes = max_bytes
        self.uploads.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def receiving(self, chunks: Iterator[bytes]) -> Iterator[Upload]:
        """Bring the chunks to the disk. What is not kept meanwhile is removed at the end.

        Raises:
            RequestTooLarge: more than `max_bytes`.
        """
        self.uploads.mkdir(exist_ok=True)
        path = self.uploads / uuid.uuid4().hex
        try:
            with path.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                yield Upload(path, *self._write(chunks, file))
        finally:
            path.unlink(missing_ok=True)

    def keep(self, upload: Upload, file_id: str) -> None:
        """Move the bytes to their place, and wait for the disk."""
        os.rename(upload.path, self.folder / file_id)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def verified(self, file_id: str, size: int, sha256: str) -> Iterator[BinaryIO]:
        """The bytes of a file. Raises FileDamaged: they are gone, cannot be read, or are others."""
        path = self.folder / file_id
        with _readable(path):
            source = path.open("rb")
        with source:
            with _readable(path):
                found = hashlib.file_digest(source, "sha256").hexdigest()
            if found != sha256:
                there = os.fstat(source.fileno()).st_size
                raise _damage(path, f"is damaged ({there} bytes, {size} were uploaded)")
            source.seek(0)
            yield source

    def lines(self, file_id: str) -> int | None:
        """How many lines a file has. None: it cannot be read."""
        count, last = 0, b"\n"
        try:
            with (self.folder / file_id).open("rb") as source:
                while chunk := source.read(_CHUNK_BYTES):
                    count, last = count + chunk.count(b"\n"), chunk[-1:]
        except OSError:
            return None
        return count + (last != b"\n")

    def remove(self, file_id: str) -> None:
        (self.folder / file_id).unlink(missing_ok=True)

    def _write(self, chunks: Iterator[bytes], file: BinaryIO) -> tuple[int, str]:
        """Write to `file`, synced; return size and SHA-256."""
        size, digest = 0, hashlib.sha256()
        for chunk in chunks:
            size += len(chunk)
            if size > self._max_bytes:
                raise RequestTooLarge(
                    f"the file's content is over the limit of {self._max_bytes} bytes; split it",
                    param="file",
                )
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return size, digest.hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises FileDamaged for what the system says of a file that cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise _damage(path, "is gone") from error
    except OSError as error:
        raise _damage(path, f"cannot be read ({error.strerror})") from error


def _damage(path: Path, what: str) -> FileDamaged:
    log.error("file %s %s", path, what)
    return FileDamaged(
        f"file {path.name} {what}: restore {path} on the server, or upload the file again"
    )
