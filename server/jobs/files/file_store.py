"""Store files: rows in the database, bytes in a folder. Knows nothing of their contents.

A row exists only once its bytes are on the disk. Bytes without a row are left by a crash. A later
start removes them, when they are too old to be an upload in progress.
"""

import hashlib
import os
import secrets
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.control_characters import has_control
from server.db.session import Database, ensure_owner
from server.db.tables import FileRow, JobRow
from server.errors import Conflict, FileDamaged, InvalidRequest, NotFound, RequestTooLarge
from server.jobs import rows
from server.jobs.queue.job import UNFINISHED
from server.jobs.rows import Page

RESULTS = "fine-tune-results"
"""The purpose of files that jobs make; users cannot upload them."""

_CHUNK_BYTES = 2**20
_LEFTOVER_AGE_S = 24 * 3600
_LONGEST_NAME = 255  # characters, which are at most 1,020 bytes
_LONGEST_PURPOSE = 64


@dataclass(frozen=True)
class StoredFile:
    """A file. `status` is the OpenAI API's for one that can be used."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: int
    status: Literal["processed"] = "processed"

    @classmethod
    def from_row(cls, row: FileRow) -> "StoredFile":
        names = (field.name for field in fields(cls) if field.name != "status")
        return cls(**{name: getattr(row, name) for name in names})


class Files:
    """The files of all owners; bytes lie in `folder`, which is made if it is missing."""

    def __init__(self, database: Database, folder: Path, max_bytes: int) -> None:
        self._database = database
        self._folder = folder
        self._uploads = folder / ".uploads"
        self._max_bytes = max_bytes
        self._uploads.mkdir(parents=True, exist_ok=True)

    def create(self, owner: str, filename: str, purpose: str, source: BinaryIO) -> StoredFile:
        """Read `source` to its end and keep it; on the disk when this returns.

        Raises:
            RequestTooLarge: more than `max_bytes`.
            InvalidRequest: `filename` or `purpose` cannot be kept.
        """
        _check_text("filename", filename, _LONGEST_NAME)
        _check_text("purpose", purpose, _LONGEST_PURPOSE)
        if filename in (".", "..") or "/" in filename or "\\" in filename:
            raise InvalidRequest(
                f"filename={filename[:40]!r} names a folder: send the file's own name alone",
                param="filename",
            )
        upload = self._uploads / uuid.uuid4().hex
        try:
            size, sha256 = self._receive(source, upload)
            with self._database.transaction() as session:
                now = self._database.now(session)
                ensure_owner(session, owner, now)
                row = FileRow(
                    id=f"file-{secrets.token_hex(12)}",
                    owner=owner,
                    filename=filename,
                    purpose=purpose,
                    bytes=size,
                    sha256=sha256,
                    created_at=int(now),
                )
                session.add(row)
                session.flush()
                os.rename(upload, self._folder / row.id)
                _sync(self._folder)
        finally:
            upload.unlink(missing_ok=True)
        return StoredFile.from_row(row)

    def list(
        self,
        owner: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = rows.MAX_LIMIT,
        order: Literal["asc", "desc"] = "desc",
    ) -> Page[StoredFile]:
        """The owner's files, by default the newest first. Raises InvalidRequest."""
        where = [FileRow.owner == owner]
        if purpose is not None:
            where.append(FileRow.purpose == purpose)
        with self._database.reading() as session:
            read, newest_first = StoredFile.from_row, order == "desc"
            return rows.page(session, FileRow, read, where, after, limit, newest_first=newest_first)

    def get(self, owner: str, file_id: str) -> StoredFile:
        """One file. Raises NotFound."""
        with self._database.reading() as session:
            return StoredFile.from_row(_find(session, owner, file_id))

    def named(self, owner: str, filename: str, purpose: str) -> StoredFile | None:
        """The newest file of that name and purpose, if there is one."""
        query = (
            select(FileRow)
            .where(FileRow.owner == owner, FileRow.filename == filename, FileRow.purpose == purpose)
            .order_by(FileRow.number.desc())
            .limit(1)
        )
        with self._database.reading() as session:
            row = session.scalar(query)
            return None if row is None else StoredFile.from_row(row)

    def path(self, owner: str, file_id: str) -> Path:
        """Where the bytes lie. Raises NotFound."""
        return self._folder / self.get(owner, file_id).id

    @contextmanager
    def verified(self, owner: str, file_id: str) -> Iterator[BinaryIO]:
        """The bytes of a file, checked to be those of the upload.

        Raises:
            NotFound: there is none.
            FileDamaged: they are gone, or others.
        """
        stored = self.get(owner, file_id)
        remedy = f"file {file_id} on the server's disk %s: upload it again"
        try:
            source = (self._folder / stored.id).open("rb")
        except FileNotFoundError as error:
            raise FileDamaged(remedy % "is gone") from error
        with source:
            if hashlib.file_digest(source, "sha256").hexdigest() != stored.sha256:
                size = os.fstat(source.fileno()).st_size
                damage = f"is damaged ({size} bytes, {stored.bytes} were uploaded)"
                raise FileDamaged(remedy % damage)
            source.seek(0)
            yield source

    def delete(self, owner: str, file_id: str) -> None:
        """Forget a file.

        Raises:
            NotFound: there is none.
            Conflict: a job that has not ended needs it.
        """
        with self._database.transaction() as session:
            row = _find(session, owner, file_id, lock=True)
            needs = or_(JobRow.training_file == row.id, JobRow.validation_file == row.id)
            job = session.scalar(
                select(JobRow.id).where(JobRow.owner == owner, JobRow.status.in_(UNFINISHED), needs)
            )
            if job is not None:
                raise Conflict(f"job {job} still needs file {file_id!r}; cancel it first")
            session.delete(row)
        (self._folder / file_id).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove files without a row that are older than a day; return how many.

        Call it at start. The age is by the file system's clock and this machine's. If they jump
        apart, an upload in progress may fail, with an error to its user.
        """
        oldest = time.time() - _LEFTOVER_AGE_S
        paths = (*self._uploads.iterdir(), *self._folder.glob("file-*"))
        stale = [path for path in paths if _older(path, oldest)]
        with self._database.reading() as session:
            known = set(session.scalars(select(FileRow.id))) if stale else set()
        leftovers = [path for path in stale if path.name not in known]
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def _receive(self, source: BinaryIO, path: Path) -> tuple[int, str]:
        """Copy to `path`, synced; return size and SHA-256."""
        size, digest = 0, hashlib.sha256()
        with path.open("xb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > self._max_bytes:
                    raise RequestTooLarge(
                        f"the file is over the limit of {self._max_bytes} bytes; split it",
                        param="file",
                    )
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return size, digest.hexdigest()


def _check_text(param: str, text: str, most: int) -> None:
    if not 0 < len(text) <= most:
        raise InvalidRequest(
            f"{param}={shown(text)} has {len(text)} characters: send 1 to {most}", param=param
        )
    if has_control(text):
        raise InvalidRequest(
            f"{param}={shown(text)} holds a control character, or one that reorders the others: "
            "leave it out",
            param=param,
        )


def _find(session: Session, owner: str, file_id: str, *, lock: bool = False) -> FileRow:
    row = rows.find(session, FileRow, owner, file_id, lock=lock)
    if row is None:
        raise NotFound(f"there is no file {shown(file_id)}")
    return row


def _older(path: Path, time_s: float) -> bool:
    try:
        return path.stat().st_mtime < time_s
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
