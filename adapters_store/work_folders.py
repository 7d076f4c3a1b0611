"""Temporary folders that several processes make below one folder. Knows nothing of their contents.

Each folder is locked (flock, freed by the system when a process dies) while its maker lives. So
what a killed process left is told apart from what another one is working on.
"""

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNLESS_LOCKED = fcntl.LOCK_EX | fcntl.LOCK_NB


class WorkFolders:
    """Makes folders below `root`, which is made if it is missing. Removes leftovers now."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held: dict[Path, int] = {}
        self._turn = threading.Lock()
        self.sweep()

    def make(self) -> Path:
        """A new, empty folder for this user alone. Whoever gets it removes it."""
        with self._alone():
            for folder in [folder for folder in self._held if not folder.exists()]:
                os.close(self._held.pop(folder))
            folder = Path(tempfile.mkdtemp(dir=self._root))
            self._held[folder] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._held[folder], _UNLESS_LOCKED)
        return folder

    @contextmanager
    def using(self) -> Iterator[Path]:
        """A new folder that is removed at the end."""
        folder = self.make()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what processes left that are no more."""
        with self._alone(), os.scandir(self._root) as entries:
            for entry in entries:
                with suppress(OSError):  # another process works on it, or it is not ours to remove
                    _remove_unless_locked(entry)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from sweeping a folder before it is locked."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._turn:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _remove_unless_locked(entry: "os.DirEntry[str]") -> None:
    """Raises BlockingIOError: it is locked."""
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.path)
        return
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, _UNLESS_LOCKED)
        shutil.rmtree(entry.path)
    finally:
        os.close(descriptor)
