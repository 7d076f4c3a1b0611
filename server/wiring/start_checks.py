"""Checks settings before anything is made of them. Imports no torch."""

import os
from pathlib import Path

from adapters_store.manifest import parse_adapter_id
from adapters_store.store_errors import InvalidName
from server.bases.base_place import locate
from server.config import BadOption, Settings


def check_settings(settings: Settings) -> None:
    """Check what can be checked in milliseconds.

    Raises:
        BadOption, UnsupportedModel: a setting cannot be right.
    """
    locate(settings.model)
    home = settings.home_path
    _check_home(home)
    for name in settings.pinned:
        try:
            parse_adapter_id(name)
        except InvalidName as error:
            raise BadOption(f"--pinned {name}: {error}") from error
        if not home.exists():
            raise no_such_pin(name)


def no_such_pin(name: str) -> BadOption:
    """The error of an adapter that is to be pinned and is not there."""
    return BadOption(
        f"--pinned {name}: the home has no such adapter: train it first, or leave it out"
    )


def _check_home(home: Path) -> None:
    """Raise BadOption unless the folder is there, or can be made."""
    try:
        nearest = next(path for path in (home, *home.parents) if path.exists())
    except OSError as error:
        raise BadOption(f"--home {home}: {error.strerror}: choose another folder") from error
    if not nearest.is_dir():
        raise BadOption(f"--home {home}: {nearest} is a file: choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadOption(f"--home {home}: {nearest} may not be written to: choose another folder")
