"""Checks settings before anything is made of them. Imports no torch."""

import os
import socket
from ipaddress import ip_address
from pathlib import Path

from adapters_store.manifest import parse_adapter_id, split_owner
from adapters_store.store_errors import InvalidName
from server.bases.base_place import locate
from server.config import AUTO, BadOption, Settings


def check_settings(settings: Settings) -> None:
    """Check what can be checked in milliseconds.

    Raises:
        BadOption, UnsupportedModel: a setting cannot be right.
    """
    if settings.model != AUTO:
        locate(settings.model)
    home = settings.home_path
    _check_home(home)
    for name in settings.pinned:
        try:
            parse_adapter_id(split_owner(name)[1])
        except InvalidName as error:
            raise BadOption(f"--pinned {name}: {error}") from error
        if not home.exists():
            raise no_such_pin(name)


def check_reach(settings: Settings) -> None:
    """Raise BadOption if others than this machine could use the server without a key."""
    if settings.key is None and not settings.insecure and not _is_loopback(settings.host):
        raise BadOption(
            f"--host {settings.host}: others than this machine may reach that address, and the "
            "server has no key: give --api-key or VERANDAH_API_KEY, or --insecure to let everybody "
            "who reaches it do anything"
        )


def _is_loopback(host: str) -> bool:
    """Whether all addresses of a name are this machine's own. What cannot be found is told later,
    when the server listens."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return True
    return all(ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)


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
