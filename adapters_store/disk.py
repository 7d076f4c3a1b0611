"""Reads the folders of the store, and brings changes of a folder to the disk. Knows no files."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from adapters_store.store_errors import AdapterCorrupt

_ASIDE = "aside"


@dataclass(frozen=True)
class Pointer:
    """The file `latest`: what the bare name means, and the highest version ever issued."""

    latest: int
    issued: int


def read_pointer(folder: Path) -> Pointer | None:
    """The pointer of an adapter's folder; None: there is no such adapter."""
    path = folder / "latest"
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    try:
        latest, issued = map(int, text.split())
    except ValueError as error:
        raise AdapterCorrupt(
            f"{path}: {text[:40]!r} is not two version numbers, the latest and the highest: "
            f"write them, or delete the adapter {folder.name!r} whole"
        ) from error
    return Pointer(latest, issued)


def pointer_or_folders(folder: Path) -> Pointer | None:
    """The pointer; where that is damaged, the highest version that is there."""
    try:
        return read_pointer(folder)
    except AdapterCorrupt:
        return Pointer(0, max(_numbers(folder), default=0))


def last_issued(path: Path) -> int:
    """The number that `path` has of a name whose versions are all deleted; 0: there is none."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise AdapterCorrupt(f"{path}: not a version number; write the highest one") from error


def versions_in(folder: Path, pointer: Pointer) -> list[int]:
    """The versions in an adapter's folder, ascending."""
    return sorted(number for number in _numbers(folder) if number <= pointer.issued)


def put_aside(version: Path) -> None:
    """Mark a version's folder: the bare name never comes to mean it."""
    (version / _ASIDE).touch()


def is_aside(version: Path) -> bool:
    """Whether the bare name never means the version in this folder."""
    return (version / _ASIDE).exists()


def names(path: Path) -> list[str]:
    """Names of the folders in `path` that are not ours (those begin with a dot), sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.name[0] != "." and e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _numbers(folder: Path) -> list[int]:
    return [int(name) for name in names(folder) if name.isdecimal()]


def sync(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def empty(folder: Path) -> None:
    """Remove all that is in a folder; another process may be doing the same."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
