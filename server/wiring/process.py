"""How this program starts itself again: which command, with which environment, under what name;
and how it ends to be started again by others."""

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from server.config import PREFIX, Settings

_ROOT = Path(__file__).parents[2]
_LAST_WORDS_S: Final = 1.0


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


def end_soon() -> None:
    """End this process, whose device has failed for good: in a second, so that who waits for an
    answer hears of it. Whoever started it starts it again. Returns at once."""
    end = threading.Timer(_LAST_WORDS_S, os._exit, (os.EX_TEMPFAIL,))
    end.daemon = True
    end.start()
