"""The keys that `verandah login` got, one for each server, in a file that only the user reads."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.config import BadOption


def kept_key(server: str) -> str | None:
    """The key for a server's address, unless there is none or it has expired."""
    entry = _read().get(server)
    if entry is None or entry["expires_at"] <= time.time():
        return None
    return str(entry["value"])


def keep(server: str, key: Mapping[str, Any]) -> Path:
    """Keep what a server answered to a sign-in. Returns where."""
    entry = {name: key[name] for name in ("id", "value", "owner", "expires_at")}
    return _write({**_read(), server: entry})


def forget(server: str) -> None:
    _write({name: entry for name, entry in _read().items() if name != server})


def _place() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "verandah" / "keys.json"


def _read() -> Mapping[str, Mapping[str, Any]]:
    path = _place()
    try:
        kept = json.loads(path.read_text())
        return {
            server: entry
            for server, entry in kept.items()
            if isinstance(entry["value"], str) and isinstance(entry["expires_at"], int)
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadOption(f"{path} does not hold keys of `verandah login`: delete it") from error


def _write(entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """Whole or not at all, and never readable by others, not even for a moment."""
    path = _place()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(entries, file, indent=2)
    new.replace(path)
    return path
