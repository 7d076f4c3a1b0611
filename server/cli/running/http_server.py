"""`verandah serve`: runs the HTTP server and starts a training worker. Knows no endpoint."""

import argparse
import asyncio
import contextlib
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from server.app import create_app
from server.cli.options import add_settings, read_fields, set_log_level
from server.config import BadOption, Settings
from server.jobs.queue.job_queue import JobQueue
from server.metrics import Metrics
from server.supervisor import Supervisor
from server.wiring.building import open_records
from server.wiring.front import running_front, wire
from server.wiring.process import command, environment, exit_on_sigterm, say, worker_id
from server.wiring.training import trains_in_thread

EXAMPLES = """examples:
  verandah serve                                   serves the embedded model at http://127.0.0.1:8000
  verandah serve --model Qwen/Qwen3-0.6B --device cuda
  verandah serve --model /models/mine --port 9000 --api-key secret
  VERANDAH_HOME=/data VERANDAH_HOST=0.0.0.0 verandah serve

Then ask it with any OpenAI client: base_url is http://127.0.0.1:8000/v1.
"""

add_options = add_settings

_CLOSING_S = 5.0  # to send the last bytes after the engine has stopped
# How often a worker's threads spin before they sleep (GNU OpenMP). By default they spin for
# milliseconds, which wastes the cores where another program needs one.
_SPINS = "10000"


def run(options: argparse.Namespace) -> int:
    settings = read_fields(options, Settings)
    set_log_level(settings)
    exit_on_sigterm()
    metrics = Metrics(settings.served_name)
    with (
        _bound(settings) as listener,
        open_records(settings) as records,
        running_front(settings, records, metrics, say) as front,
        _worker(settings, records.jobs) as worker,
    ):
        app = create_app(wire(settings, records, front, metrics, worker))
        collect_garbage_rarely()
        _serve(settings, app, front.stop, listener)
    return 0


def collect_garbage_rarely() -> None:
    """Make Python's collector run less: it pauses every stream, and requests hardly need it."""
    gc.freeze()  # the objects up to here stay
    gc.set_threshold(20_000, 20, 20)


def _serve(
    settings: Settings, app: ASGIApp, stop: Callable[[float], None], listener: socket.socket
) -> None:
    """Listen until a signal says to stop, then drain."""
    config = uvicorn.Config(
        app,
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        log_config=None,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=int(settings.drain_timeout_s + _CLOSING_S),
        lifespan="off",
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    drain = partial(stop, settings.drain_timeout_s)
    _Server(config, drain, f"serving at http://{shown}:{port}").run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn that prints when it listens and stops the engine while it waits for answers."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None], greeting: str) -> None:
        super().__init__(config)
        self._stop = stop
        self._greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._greeting, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        say("stopping: running requests may finish")
        drain = threading.Thread(target=self._stop, daemon=True)
        drain.start()
        await super().shutdown(sockets)
        if not self.force_exit:  # a second Ctrl-C
            await asyncio.to_thread(drain.join)


@contextlib.contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """A socket that is bound but does not listen: clients are refused until the server is ready."""
    host, port = settings.host, settings.port
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BadOption(
            f"--host {host} is not an address of this machine ({error.strerror})"
        ) from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise BadOption(
                f"cannot listen at {host}:{port} ({error.strerror}); choose another --port"
            ) from error
        yield listener


@contextlib.contextmanager
def _worker(settings: Settings, jobs: JobQueue) -> Iterator[Supervisor | None]:
    """Run a training worker as a process, with these settings, if they ask for one."""
    if not settings.worker or trains_in_thread(settings):
        yield None
        return
    supervisor = Supervisor(
        command("worker", "--supervised"),
        {"GOMP_SPINCOUNT": _SPINS} | environment(settings),
        on_end=lambda pid: jobs.abandon(worker_id(pid)),
    )
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
