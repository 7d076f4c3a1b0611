"""Reads and empties folders, and brings their changes to the disk. Knows no files."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from adapters_store.store_errors import AdapterCorrupt

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the file itself is well


def names(path: Path) -> list[str]:
    """Names of the folders in `path` that are not ours (those begin with a dot), sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.name[0] != "." and e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def sync(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def empty(folder: Path) -> None:
    """Remove what can be removed of all that is in a folder; others may be doing the same."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def is_full(error: Exception) -> bool:
    """Whether it says that there is no room on the disk, or none of this user's."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def unless_full() -> Iterator[None]:
    """Go on where the disk is full: what is done to free it cannot wait for room."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raise the system's own error, which safetensors' writer wraps."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


@contextlib.contextmanager
def unreadable(path: Path, remedy: str) -> Iterator[None]:
    """Tell of a file that is there and cannot be read. Raises AdapterCorrupt."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise AdapterCorrupt(
            f"{path} cannot be read ({error.strerror}): make it readable for the server, {remedy}"
        ) from error
