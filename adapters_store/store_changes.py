"""How versions come into a store's folder, and how they go: by renames. Knows no manifests.

What comes is made in `.staging`, synced and moved in; what goes is moved to `.trash` and freed
later. See `store` for the folders and locks.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from adapters_store import disk, version_numbers
from adapters_store.manifest import AdapterRef
from adapters_store.version_numbers import Pointer


class StoreChanges:
    """Changes of the store under `root`; the folders are made if they are missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / ".staging"
        self._trash = root / ".trash"
        for folder in (root, self._staging, self._trash):
            folder.mkdir(parents=True, exist_ok=True)

    def names_locked(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else's names change meanwhile."""
        return self._lock(".lock", fcntl.LOCK_EX)

    def staging_in_use(self) -> contextlib.AbstractContextManager[None]:
        """Shared among publishers; keeps `sweep` off what they stage."""
        return self._lock(".staging.lock", fcntl.LOCK_SH)

    def nothing_staged(self) -> contextlib.AbstractContextManager[None]:
        """Keeps publishers away. Raises BlockingIOError: one is at work."""
        return self._lock(".staging.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)

    def sweep(self) -> None:
        """Remove what crashed publishers and deletions left behind, unless one is at work now."""
        disk.empty(self._trash)
        with contextlib.suppress(BlockingIOError), self.nothing_staged():
            disk.empty(self._staging)

    def commit(self, owner: str, name: str, staged: Path) -> AdapterRef:
        """Give the staged version its number and place. Needs the lock."""
        folder = self._root / owner / name
        pointer = version_numbers.read_pointer(folder)
        if pointer is None:
            return self._commit_first(owner, name, staged)
        version = pointer.issued + 1
        # What is there already was moved in by a publisher that died before its commit.
        while (target := folder / str(version)).exists():
            self.discard(target)
            version += 1
        os.rename(staged, target)
        disk.sync(folder)
        latest = pointer.latest if version_numbers.is_aside(target) else version
        version_numbers.write(folder / "latest", f"{latest} {version}\n", self.staged())
        return AdapterRef(owner, name, version)

    def staged(self) -> Path:
        """A new path to make something at that is moved into its place later."""
        self._staging.mkdir(exist_ok=True)
        return self._staging / uuid.uuid4().hex

    def discard_version(
        self, folder: Path, version: int, pointer: Pointer, left: list[int]
    ) -> None:
        """Move a version out of sight, and let the name mean the highest that is `left`."""
        latest = pointer.latest
        if version == latest:
            whole = [v for v in left if not version_numbers.is_aside(folder / str(v))]
            latest = max(whole, default=0)
            version_numbers.point(folder, Pointer(latest, pointer.issued), self.staged())
        try:
            self.discard(folder / str(version))
        except OSError:
            if latest != pointer.latest:
                version_numbers.point(folder, pointer, self.staged())
            raise

    def discard_name(self, folder: Path, issued: int) -> None:
        """Move an adapter out of sight. The highest number of its versions stays."""
        path = self._issued(folder.parent.name) / folder.name
        kept = version_numbers.keep_issued(folder, path, issued, self.staged())
        self.discard(folder)
        if not kept:
            disk.empty(self._trash)  # this makes room
            with disk.unless_full():  # the adapter is gone all the same
                version_numbers.write(path, f"{issued}\n", self.staged())

    def discard(self, path: Path) -> None:
        """Move it out of sight at once, if it is there; the next sweep frees its bytes."""
        self._trash.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, self._trash / uuid.uuid4().hex)
        with disk.unless_full():
            disk.sync(path.parent)

    def _commit_first(self, owner: str, name: str, staged: Path) -> AdapterRef:
        """Build the name's folder aside and move it in whole, so that none is without a version."""
        with contextlib.suppress(FileExistsError):
            (self._root / owner).mkdir()
            disk.sync(self._root)
        self._issued(owner).mkdir(exist_ok=True)  # now: a delete on a full disk could not
        version = version_numbers.last_issued(self._issued(owner) / name) + 1
        folder = self.staged()
        folder.mkdir()
        os.rename(staged, folder / str(version))
        latest = 0 if version_numbers.is_aside(folder / str(version)) else version
        version_numbers.write(folder / "latest", f"{latest} {version}\n", self.staged())
        os.rename(folder, self._root / owner / name)
        disk.sync(self._root / owner)
        return AdapterRef(owner, name, version)

    def _issued(self, owner: str) -> Path:
        return self._root / owner / ".issued"

    @contextlib.contextmanager
    def _lock(self, name: str, operation: int) -> Iterator[None]:
        descriptor = os.open(self._root / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, operation)
            yield
        finally:
            os.close(descriptor)  # this frees the lock
