"""Where a base model is: embedded, in a folder, or on the hub. Reads no file of it."""

import re
from pathlib import Path
from typing import Final

from server.errors import UnsupportedModel

PORCH: Final = "porch"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def locate(source: str | Path) -> Path | str:
    """The folder that `source` means, or the hub id as it is. Raises UnsupportedModel."""
    if source == PORCH:
        return Path(__file__).parent / PORCH
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UnsupportedModel(
                f"folder {str(folder)!r} has no config.json: give one that transformers saved"
            )
        return folder
    if isinstance(source, str) and _HUB_ID.fullmatch(source) and not folder.exists():
        return source
    raise UnsupportedModel(
        f"base model {str(source)!r} is not there: give 'porch', an existing folder, or a hub id"
    )
