"""Reads PEFT checkpoints from folders, and unpacks them into folders. Knows no server."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

from .client_errors import BadFolder

if sys.platform != "win32":
    import fcntl

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PART = ".verandah-part"


def checkpoint_files(folder: Path) -> tuple[Path, Path]:
    """Config and weights of a checkpoint.

    Raises:
        BadFolder: they are missing, or the weights are a pickle.
    """
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not config.is_file():
        raise BadFolder(f"{folder} has no {CONFIG_NAME}: give a folder that PEFT saved")
    if not weights.is_file():
        pickled = folder / "adapter_model.bin"
        reason = (
            f" but {pickled.name}, a pickle, which runs code when it is read: if you trust it, "
            "load it with PEFT and save it again"
            if pickled.is_file()
            else ": give a folder that PEFT saved"
        )
        raise BadFolder(f"{folder} has no {WEIGHTS_NAME}{reason}")
    return config, weights


def check_free(out: Path) -> None:
    """Raise BadFolder unless `out` is missing or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadFolder(f"{out} exists and is not an empty folder: choose another")


def unpack(archive: Iterable[bytes], out: Path) -> list[Path]:
    """Unpack a zip that comes in pieces into the new folder `out`, whole or not at all.

    Raises:
        BadFolder: `out` is not empty, or the archive is incomplete.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out.parent)
    # Received into a file without a name, which vanishes with this process.
    with tempfile.TemporaryFile(dir=out.parent) as file:
        file.writelines(archive)
        with _locked_part(out) as part:
            _extract(file, part)
            part.chmod(0o777 & ~_umask())
            if out.exists():
                out.rmdir()
            os.rename(part, out)
    return sorted(out.iterdir())


def _extract(file: IO[bytes], part: Path) -> None:
    try:
        with ZipFile(file) as opened:
            for name in opened.namelist():
                opened.extract(name, part)
    except BadZipFile as error:
        raise BadFolder(
            f"the archive from the server is incomplete ({error}): try again"
        ) from error


@contextmanager
def _locked_part(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, locked while it is filled, and gone at the end."""
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=_PART, dir=out.parent))
    try:
        with _locked(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed exports left in `folder`."""
    for part in folder.glob(f".*{_PART}") if sys.platform != "win32" else ():
        with suppress(OSError), _locked(part):
            shutil.rmtree(part)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError: another process has locked it. Windows has no such locks."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
