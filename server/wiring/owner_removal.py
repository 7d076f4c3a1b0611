"""Removes what deleted owners leave, in the background and in small steps. Knows no requests.

Each step looks at what is there, so that after a crash the next start goes on. One process of a
home does it at a time.
"""

import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from adapters_store import disk
from adapters_store.manifest import AdapterRef
from adapters_store.store_errors import AdapterNotFound, StoreError
from server.errors import Conflict, Unavailable, VerandahError
from server.jobs import removal
from server.jobs.files.file_store import StoredFile
from server.tenancy.deletions import Deletion, Deletions
from server.wiring.building import Records

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_SETTLED_S = 3600  # what a request that ran at the deletion still published is removed for so long
_LONGEST_NAME = 255  # bytes
_KEYS_GONE_S = 5  # a revoked key's row is needed until every process knows of it

Forget = Callable[[AdapterRef], None]
T = TypeVar("T")


class OwnerRemoval:
    """Removes owners from a home.

    Args:
        home: the home's folder.
        forget: drops a deleted adapter from memory.
        before: called before each change, with its name; for tests.
    """

    def __init__(
        self,
        records: Records,
        home: Path,
        forget: Forget,
        before: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._records = records
        self._home = home
        self._forget = forget
        self._before = before
        self._book = Deletions(records.database)

    def run(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Go on with all deletions as far as is possible now, unless another process does."""
        with self._alone() as alone:
            for deletion in self._book.unfinished(_SETTLED_S) if alone else ():
                with _put_off(deletion.owner):  # the others' must not wait for it
                    while not stopped() and self._step(deletion):
                        pass

    def _step(self, deletion: Deletion) -> bool:
        """Do a little; False: nothing is left to do now."""
        owner, database = deletion.owner, self._records.database
        if deletion.done_at is not None:
            return self._remove_adapter(owner)
        if removal.running_jobs(database, owner):
            return self._change("jobs", self._records.jobs.cancel_of_inactive_owners) > 0
        if deletion.export is not None and self._is_to_export(owner, deletion.export):
            self._export(owner, deletion.export)
            return True
        self._note(owner, "adapters")
        if self._remove_adapter(owner):
            return True
        self._change("folder", lambda: self._records.store.remove_owner(owner))
        self._note(owner, "files")
        files = self._records.files.folder
        if self._change("files", lambda: removal.remove_some_files(database, owner, files)):
            return True
        self._note(owner, "records")
        if self._change("rows", lambda: removal.remove_some_jobs(database, owner, self._clear)):
            return True
        with database.reading() as session:
            if database.now(session) < deletion.requested_at + _KEYS_GONE_S:
                return False
        self._change("finish", lambda: self._book.finish(owner))
        log.info("owner %s is deleted", owner)
        return False

    def _change(self, what: str, change: Callable[[], T]) -> T:
        self._before(what)
        return change()

    def _note(self, owner: str, step: str) -> None:
        if self._book.get(owner).step != step:
            self._book.note_step(owner, step)

    def _remove_adapter(self, owner: str) -> bool:
        store = self._records.store
        name = next(iter(store.names(owner)), None)
        if name is None:
            return False
        versions = store.versions(owner, name)
        self._before("adapter")
        with suppress(AdapterNotFound):  # its owner's last request has deleted it
            store.delete(owner, name)
        for version in versions:
            self._forget(AdapterRef(owner, name, version))
        return True

    def _clear(self, job: str) -> None:
        """Remove what a job left on the disk."""
        folder = self._home / "training"
        shutil.rmtree(folder / job, ignore_errors=True)
        (folder / f"{job}.lock").unlink(missing_ok=True)

    def _exported(self, name: str) -> Path:
        return self._home / "exports" / name

    def _part(self, owner: str) -> Path:
        return self._home / "exports" / f".{owner}.part"

    def _is_to_export(self, owner: str, name: str) -> bool:
        """Whether the copy is not complete. A folder of that name says so only once it was begun:
        else it is another's."""
        step = self._book.get(owner).step
        if step == "jobs":
            self._part(owner).mkdir(parents=True, exist_ok=True)
            self._note(owner, "export")
            return True
        return step == "export" and (
            self._part(owner).exists() or not self._exported(name).exists()
        )

    def _export(self, owner: str, name: str) -> None:
        """Copy adapters and files as they are. The folder has its name once all is in it."""
        if self._exported(name).exists():
            raise Conflict(f"the folder {self._exported(name)} exists already: move it away")
        part = self._part(owner)
        part.mkdir(parents=True, exist_ok=True)
        store = self._records.store
        for adapter in store.names(owner):
            for version in store.versions(owner, adapter):
                source = store.path(AdapterRef(owner, adapter, version))
                self._copy(source, part / "adapters" / adapter / str(version) / source.name)
        for sha256 in store.imported_bases.hashes() if store.names(owner) else ():
            if self._reads(owner, sha256):
                source = store.imported_bases.path(sha256)
                self._copy(source, part / "adapters" / ".bases" / source.name)
        for file in self._files(owner):
            source = self._records.files.folder / file.id
            self._copy(source, part / "files" / _fitting(f"{file.id}-{file.filename}"))
        self._before("export")
        os.rename(part, self._exported(name))
        disk.sync(part.parent)

    def _files(self, owner: str) -> Iterator[StoredFile]:
        after = None
        while True:
            page = self._records.files.list(owner, after=after, limit=1000, order="asc")
            yield from page.items
            if not page.has_more:
                return
            after = page.items[-1].id

    def _reads(self, owner: str, sha256: str) -> bool:
        store = self._records.store
        for name in store.names(owner):
            for version in store.versions(owner, name):
                with suppress(StoreError):
                    ref = AdapterRef(owner, name, version)
                    if store.open(ref).manifest.basis_sha256 == sha256:
                        return True
        return False

    def _copy(self, source: Path, target: Path) -> None:
        """Copy a file, unless a run before has. What is gone or cannot be read is told, as the
        rest must not wait for it."""
        if target.exists():
            return
        self._before("copy")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(".part")
        try:
            shutil.copyfile(source, part)
        except FileNotFoundError:
            log.warning("%s is not exported: it is gone", source)
            return
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.rename(part, target)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        with (self._home / ".deleting.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _fitting(name: str) -> str:
    """As much of a name as a folder takes."""
    return name.encode(errors="ignore")[:_LONGEST_NAME].decode(errors="ignore")


@contextmanager
def _put_off(what: str) -> Iterator[None]:
    """Log what goes wrong: the next turn may succeed."""
    try:
        yield
    except (VerandahError, StoreError, OSError) as error:
        level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
        log.log(level, "the deletion of %s is put off: %s", what, error)
    except Exception:
        log.exception("the deletion of %s failed", what)


@contextmanager
def removing_owners(
    records: Records, home: Path, forget: Forget, *, every_s: float = _EVERY_S
) -> Iterator[None]:
    """Remove deleted owners in a thread of this process."""
    stop = threading.Event()
    work = OwnerRemoval(records, home, forget)
    thread = threading.Thread(target=_repeat, args=(work, every_s, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _repeat(work: OwnerRemoval, every_s: float, stop: threading.Event) -> None:
    while not stop.is_set():
        with _put_off("owners"):
            work.run(stop.is_set)
        stop.wait(every_s)
