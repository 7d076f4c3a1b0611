"""How this program imports what is slow, starts its own commands, and ends to be restarted."""

import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from server.config import PREFIX, Settings
from server.loop_progress import Progress, watch

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[2]
_GRACE_S: Final = 1.0


def command(name: str, *options: str) -> list[str]:
    """The command line of one of this program's commands."""
    # Without -P, a folder named `server` in the working directory would run instead.
    return [sys.executable, "-P", "-m", "server", name, *options]


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment, with the settings as variables."""
    values = settings.model_dump(mode="json", exclude_none=True)
    if settings.key is not None:
        values["api_key"] = settings.key
    values["home"] = str(settings.home_path)
    for name in [name for name in values if name.startswith("oidc_") or name == "public_url"]:
        del values[name]  # only who serves HTTP needs them, and one is a secret
    for name, value in settings:
        if isinstance(value, tuple) and name in values:
            values[name] = ",".join(value)
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    variables = {PREFIX + name.upper(): str(value) for name, value in values.items()}
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(f"{PREFIX}OIDC_")
    }
    return inherited | variables | {"PYTHONPATH": path}


def say(message: str) -> None:
    """Print a line for the user, on the error stream."""
    print(f"verandah: {message}", file=sys.stderr, flush=True)


@contextmanager
def slow_imports() -> Iterator[None]:
    """Import torch and what needs it. Python's collector would look through the growing modules
    again and again, for a quarter of the time, so it rests meanwhile. It leaves them alone
    afterwards too: the load of a model would make it look through all of them."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def exit_on_sigterm(status: int = 0) -> None:
    """Make SIGTERM an exception, so that every context manager closes what it opened."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(status)

    signal.signal(signal.SIGTERM, end)


def wait_for_servers_end() -> None:
    """Return when the server that started this process has ended, which closes our input."""
    # os.read, because Python's own reader would hold a lock that the interpreter needs at exit.
    with contextlib.suppress(ConnectionError):  # it ended without having read our last beats
        while os.read(sys.stdin.fileno(), 4096):
            pass


def end_when_hung(*loops: Progress, supervised: bool = True) -> None:
    """From now on end this process as soon as one of its loops hangs, so that what started it
    starts it again. Returns at once.

    Args:
        supervised: by a `Supervisor`, whom a beat tells of the progress.
    """

    def beat(silent_s: float) -> None:
        with contextlib.suppress(OSError):  # it has ended; another thread notices
            os.write(sys.stdin.fileno(), bytes([math.ceil(silent_s)]))

    def end(problem: str) -> None:
        log.critical("this process hangs and ends: %s", problem)
        os._exit(os.EX_TEMPFAIL)

    watch(loops, end, beat=beat if supervised else lambda _silent_s: None)


def worker_id(pid: int) -> str:
    """The name by which a worker in process `pid` of this machine claims jobs."""
    return f"{socket.gethostname()}-{pid}"


def end_soon(grace_s: float = _GRACE_S) -> None:
    """End this process in a second, because its device has failed for good, or it hangs. Until then
    clients get their errors; what started the process starts it again. Returns at once."""
    end = threading.Timer(grace_s, os._exit, (os.EX_TEMPFAIL,))
    end.daemon = True
    end.start()
