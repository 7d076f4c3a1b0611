"""Reads PEFT checkpoints from folders, and unpacks them into folders. Knows no server."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from clients.python.client_errors import BadFolder

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


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
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with tempfile.TemporaryFile(dir=part) as file:
            file.writelines(archive)
            with ZipFile(file) as opened:
                for name in opened.namelist():
                    opened.extract(name, part)
        part.chmod(0o777 & ~_umask())
        if out.exists():
            out.rmdir()
        os.rename(part, out)
    except BadZipFile as error:
        raise BadFolder(
            f"the archive from the server is incomplete ({error}): try again"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(out.iterdir())


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
