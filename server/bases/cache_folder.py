"""The folder for what can be made or fetched again. Nothing in a home depends on it."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Verandah's part of the user's cache: under XDG_CACHE_HOME, or ~/.cache. May not be there."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "verandah"
