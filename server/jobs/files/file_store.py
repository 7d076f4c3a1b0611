"""Store files: rows in the database, bytes in a folder. Knows nothing of their contents.

A row exists only once its bytes are on the disk. Bytes without a row are left by a crash, and
`sweep` removes them.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from adapters_store.outside_values import shown
from server.control_characters import has_control
from server.db.audit_trail import record
from server.db.session import Database, ensure_owner
from server.db.tables import FileRow, JobRow
from server.errors import Conflict, InvalidRequest, NotFound
from server.jobs import rows
from server.jobs.files import leftovers
from server.jobs.files.file_bytes import FileBytes
from server.jobs.files.unpacking import unpacked
from server.jobs.queue.job import UNFINISHED
from server.jobs.queue.quotas import Quotas
from server.jobs.rows import Page

RESULTS = "fine-tune-results"
"""The purpose of files that jobs make; users cannot upload them."""

SHORTEST_LIFE_S = 3600
LONGEST_LIFE_S = 30 * 24 * 3600
"""What the OpenAI API allows between a file's upload and its expiry."""

_AT_ONCE = 1000
_REMEMBERED = 100_000  # numbers of lines
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
    expires_at: int | None
    status: Literal["processed"] = "processed"

    @classmethod
    def from_row(cls, row: FileRow) -> "StoredFile":
        names = (field.name for field in fields(cls) if field.name != "status")
        return cls(**{name: getattr(row, name) for name in names})


class Files:
    """The files of all owners; bytes lie in `folder`, which is made if it is missing.

    Args:
        quotas: what owners may keep. What jobs make is kept in any case.
    """

    def __init__(
        self, database: Database, folder: Path, max_bytes: int, quotas: Quotas | None = None
    ) -> None:
        self._database = database
        self._bytes = FileBytes(folder, max_bytes)
        self._quotas = quotas or Quotas()
        self._lines: dict[str, int] = {}  # how many there are, by file

    @property
    def folder(self) -> Path:
        """Where the bytes lie, each file's under its id."""
        return self._bytes.folder

    def create(
        self,
        owner: str,
        filename: str,
        purpose: str,
        source: BinaryIO,
        *,
        expires_after_s: int | None = None,
    ) -> StoredFile:
        """Read `source` to its end and keep it; on the disk when this returns. What is compressed
        with gzip is kept unpacked, and its name loses `.gz`.

        Args:
            expires_after_s: when it is deleted again. None: never.

        Raises:
            RequestTooLarge: more than `max_bytes`, unpacked.
            InvalidRequest: `filename` or `purpose` cannot be kept, it cannot expire then, or it is
                compressed in another way or wrongly.
            QuotaExceeded: the owner has as much as it may have.
        """
        packed, chunks = unpacked(source)
        if packed and len(filename) > len(".gz") and filename.lower().endswith(".gz"):
            filename = filename[: -len(".gz")]
        _check_name(filename)
        _check_text("purpose", purpose, _LONGEST_PURPOSE)
        if expires_after_s is not None:
            _check_life(expires_after_s)
        with self._bytes.receiving(chunks) as upload, self._database.transaction() as session:
            now = self._database.now(session)
            ensure_owner(session, owner, now)
            if purpose != RESULTS:
                self._quotas.check_file(session, owner, upload.size, now)
            row = FileRow(
                id=f"file-{secrets.token_hex(12)}",
                owner=owner,
                filename=filename,
                purpose=purpose,
                bytes=upload.size,
                sha256=upload.sha256,
                created_at=int(now),
                expires_at=expires_after_s and int(now) + expires_after_s,
            )
            session.add(row)
            session.flush()
            kept = {"filename": filename, "bytes": upload.size, "sha256": upload.sha256}
            record(session, now, "file.created", row.id, owner=owner, after=kept)
            self._bytes.keep(upload, row.id)
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
            now = self._database.now(session)
            where.append(or_(FileRow.expires_at.is_(None), FileRow.expires_at > now))
            read, newest_first = StoredFile.from_row, order == "desc"
            return rows.page(session, FileRow, read, where, after, limit, newest_first=newest_first)

    def get(self, owner: str, file_id: str) -> StoredFile:
        """One file. Raises NotFound: there is none, or it has expired."""
        with self._database.reading() as session:
            return StoredFile.from_row(self._find(session, owner, file_id))

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

    def names(self, owner: str, file_ids: Iterable[str]) -> dict[str, str]:
        """The names of these files by id; those that are gone are left out."""
        query = select(FileRow.id, FileRow.filename).where(
            FileRow.owner == owner, FileRow.id.in_([*file_ids])
        )
        with self._database.reading() as session:
            return {file_id: name for file_id, name in session.execute(query)}

    def path(self, owner: str, file_id: str) -> Path:
        """Where the bytes lie. Raises NotFound."""
        return self.folder / self.get(owner, file_id).id

    @contextmanager
    def verified(self, owner: str, file_id: str, *, of_job: bool = False) -> Iterator[BinaryIO]:
        """The bytes of a file, checked to be those of the upload.

        Args:
            of_job: also if it has expired: a job that has not ended keeps its files.

        Raises:
            NotFound: there is none.
            FileDamaged: they are gone, cannot be read, or are others.
        """
        with self._database.reading() as session:
            stored = StoredFile.from_row(self._find(session, owner, file_id, of_job=of_job))
        with self._bytes.verified(stored.id, stored.bytes, stored.sha256) as source:
            yield source

    def lines(self, file: StoredFile, most_bytes: int) -> int | None:
        """How many lines a file has. It is remembered. None: the file is larger than `most_bytes`
        and was not read before, or its bytes are gone."""
        if file.id not in self._lines:
            counted = self._bytes.lines(file.id) if file.bytes <= most_bytes else None
            if counted is None:
                return None
            if len(self._lines) >= _REMEMBERED:
                self._lines.clear()
            self._lines[file.id] = counted
        return self._lines[file.id]

    def delete(self, owner: str, file_id: str) -> None:
        """Forget a file.

        Raises:
            NotFound: there is none.
            Conflict: a job that has not ended needs it.
        """
        with self._database.transaction() as session:
            row = self._find(session, owner, file_id, lock=True)
            job = session.scalar(_needing(row))
            if job is not None:
                raise Conflict(f"job {job} still needs file {file_id!r}; cancel it first")
            gone = {"filename": row.filename, "bytes": row.bytes, "sha256": row.sha256}
            now = self._database.now(session)
            record(session, now, "file.deleted", row.id, owner=owner, before=gone)
            self._remove(session, row)

    def count_of(self, owner: str) -> int:
        """How many files an owner has, expired ones too."""
        with self._database.reading() as session:
            return rows.count(session, FileRow, owner)

    def expire(self) -> Sequence[StoredFile]:
        """Delete the files whose time is over, but those of jobs that have not ended."""
        gone = []
        with self._database.transaction() as session:
            over = FileRow.expires_at <= self._database.now(session)
            free = ~_needing(FileRow).exists()
            some = select(FileRow).where(over, free).limit(_AT_ONCE).with_for_update()
            for row in session.scalars(some).all():
                if session.scalar(_needing(row)) is None:  # a job may have come before the lock
                    gone.append(StoredFile.from_row(row))
                    self._remove(session, row)
        return gone

    def sweep(self) -> int:
        """Remove what crashed uploads left; return how many. Call it at start and now and then."""
        return leftovers.remove(self._database, self.folder, self._bytes.uploads)

    def adopt(self, owner: str) -> Sequence[str]:
        """Give files that the database has lost new rows, as far as their bytes tell; their ids."""
        return leftovers.adopt(self._database, self.folder, owner)

    def missing(self) -> Sequence[str]:
        """The ids of files whose bytes are gone."""
        ids = leftovers.known_ids(self._database)
        return sorted(id for id in ids if not (self.folder / id).exists())

    def _remove(self, session: Session, row: FileRow) -> None:
        """The bytes go first: on a full disk they make room for the change of the database."""
        session.delete(row)
        session.flush()
        self._bytes.remove(row.id)

    def _find(
        self,
        session: Session,
        owner: str,
        file_id: str,
        *,
        lock: bool = False,
        of_job: bool = False,
    ) -> FileRow:
        now = 0.0 if of_job else self._database.now(session)
        row = rows.find_file(session, owner, file_id, now, lock=lock)
        if row is None:
            raise NotFound(f"there is no file {shown(file_id)}")
        return row


def _check_name(filename: str) -> None:
    _check_text("filename", filename, _LONGEST_NAME)
    if filename in (".", "..") or "/" in filename or "\\" in filename:
        raise InvalidRequest(
            f"filename={filename[:40]!r} names a folder: send the file's own name alone",
            param="filename",
        )


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


def _needing(
    row: FileRow | type[FileRow],
) -> Select[Any]:  # SQLAlchemy 2.0 and 2.1 differ in what it holds
    """The job that has not ended and needs the file."""
    needs = or_(JobRow.training_file == row.id, JobRow.validation_file == row.id)
    return select(JobRow.id).where(JobRow.owner == row.owner, JobRow.status.in_(UNFINISHED), needs)


def _check_life(seconds: int) -> None:
    if not SHORTEST_LIFE_S <= seconds <= LONGEST_LIFE_S:
        raise InvalidRequest(
            f"expires_after[seconds]={seconds} is not between {SHORTEST_LIFE_S} (an hour) and "
            f"{LONGEST_LIFE_S} (30 days)",
            param="expires_after[seconds]",
        )
