"""How this program starts itself again: which command, with which environment, under what name."""

import os
import socket
import sys
from pathlib import Path

from server.cli.options import PREFIX
from server.config import Settings

_ROOT = Path(__file__).parents[2]


def command(name: str, *options: str) -> list[str]:
    """The command line of one of our commands."""
    # Without -P, a folder named `server` where the user happens to be would be run in our place.
    return [sys.executable, "-P", "-m", "server", name, *options]


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment with the settings in it."""
    values = settings.model_dump(mode="json", exclude_none=True)
    if settings.api_key is not None:
        values["api_key"] = settings.api_key.get_secret_value()
    values["home"] = str(settings.home_path)
    values["pinned"] = ",".join(settings.pinned)
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    named = {PREFIX + name.upper(): str(value) for name, value in values.items()}
    return dict(os.environ) | named | {"PYTHONPATH": path}


def worker_id(pid: int) -> str:
    """The name under which a worker of that process, on this machine, claims jobs."""
    return f"{socket.gethostname()}-{pid}"
