"""Which versions an adapter's folder has, and what its bare name means. Knows no adapters.

A change is written aside and renamed into place. Where the disk is full, deleting must work all the
same: a pointer is then changed in its place, and a name's highest number is kept by a link.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from adapters_store import disk
from adapters_store.store_errors import AdapterCorrupt

_ASIDE = "aside"
_VERSION = re.compile("[1-9][0-9]{0,17}")
_POINTER_BYTES = 64


@dataclass(frozen=True)
class Pointer:
    """The file `latest`: what the bare name means, and the highest version ever issued."""

    latest: int
    issued: int


def read_pointer(folder: Path, *, or_folders: bool = False) -> Pointer | None:
    """The pointer of an adapter's folder; None: there is no such adapter.

    Raises:
        AdapterCorrupt: it is damaged or missing. With `or_folders` the folders of the versions
            count then.
    """
    try:
        text = _read(folder / "latest")
        return None if text is None else _parsed(folder / "latest", text)
    except AdapterCorrupt:
        if or_folders:
            return Pointer(0, max(_numbers(folder), default=0))
        raise


def last_issued(path: Path) -> int:
    """The last number that `path` has of a name whose versions are all deleted; 0: none."""
    try:
        return int(path.read_text(errors="replace").split()[-1])
    except FileNotFoundError:
        return 0
    except (ValueError, IndexError) as error:
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


def write(path: Path, text: str, draft: Path) -> None:
    """Replace a small file at once and wait for the disk. `draft` is a free path beside it."""
    try:
        with draft.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    disk.sync(path.parent)


def point(folder: Path, pointer: Pointer, draft: Path) -> None:
    """Make the bare name mean another version, also where the disk is full."""
    path, text = folder / "latest", f"{pointer.latest} {pointer.issued}\n"
    try:
        write(path, text, draft)
    except OSError as error:
        if not disk.is_full(error):
            raise
        _overwrite(path, text)


def keep_issued(folder: Path, path: Path, issued: int, draft: Path) -> bool:
    """Keep the highest number of an adapter at `path`. False: the disk has no room even for that.

    On a full disk it is the adapter's `latest`, which ends with that number: a link needs no room.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        write(path, f"{max(issued, _last_readable(path))}\n", draft)
        return True
    except OSError as error:
        if not disk.is_full(error):
            raise
    try:
        read_pointer(folder)
        os.link(folder / "latest", draft)
        os.replace(draft, path)
    except (OSError, AdapterCorrupt):  # no links on this disk, or no such file to link to
        draft.unlink(missing_ok=True)
        return False
    return True


def _last_readable(path: Path) -> int:
    try:
        return last_issued(path)
    except AdapterCorrupt:
        return 0


def _overwrite(path: Path, text: str) -> None:
    """Change a small file in its place, which needs no room on the disk.

    It is too small for a crash to leave half of it. What was longer is filled up with spaces.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, text.encode().ljust(os.fstat(descriptor).st_size), 0)
        with disk.unless_full():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> str | None:
    """The text of the pointer at `path`; None: its folder is not there."""
    remedy = f"restore it, or delete the adapter {path.parent.name!r} whole"
    for attempt in range(2):  # the folder may have come between the two looks
        try:
            with disk.unreadable(path, remedy), path.open("rb") as file:
                return file.read(_POINTER_BYTES).decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError) as error:
            if not os.path.lexists(path.parent):
                return None
            if attempt:
                raise AdapterCorrupt(f"{path} is missing: {remedy}") from error
    return None


def _parsed(path: Path, text: str) -> Pointer:
    try:
        latest, issued = map(int, text.split())
        if not 0 <= latest <= issued:
            raise ValueError
    except ValueError as error:
        raise AdapterCorrupt(
            f"{path}: {text[:40]!r} is not two version numbers, the latest and the highest: "
            f"write them, or delete the adapter {path.parent.name!r} whole"
        ) from error
    return Pointer(latest, issued)


def _numbers(folder: Path) -> list[int]:
    return [int(name) for name in disk.names(folder) if _VERSION.fullmatch(name)]
