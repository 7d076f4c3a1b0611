"""Runs the HTTP server and starts a training worker. Knows no endpoint."""

import asyncio
import contextlib
import gc
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from server.api.connections import ConnectionLimits, http_protocol
from server.api.history import keeping_history
from server.app import create_app, describe
from server.bases.model import BaseModel
from server.config import Settings
from server.jobs.queue.job_queue import JobQueue
from server.loop_progress import watch
from server.metrics import Metrics
from server.supervisor import Supervisor
from server.tenancy.key_watch import watching_keys
from server.tenancy.usage.usage_book import writing_usage
from server.wiring.front import check_base_and_devices, running_front
from server.wiring.front_services import wire
from server.wiring.homes import open_home
from server.wiring.housekeeping import housekeeping
from server.wiring.owner_removal import removing_owners
from server.wiring.process import command, environment, say, worker_id
from server.wiring.training import trains_in_thread

_OTHER_FILES = 256  # the database, adapters, uploads, pipes
_DATABASE_S = 3.0  # a client that waits for a locked database is told so
_CLOSING_S = 5.0  # to send the last bytes after the engine has stopped
# How often a worker's threads spin before they sleep (GNU OpenMP). By default they spin for
# milliseconds, which wastes the cores where another program needs one.
_SPINS = "10000"


def run_server(settings: Settings, listener: socket.socket) -> None:
    """Serve until a signal says to stop.

    Raises:
        BadOption, UnsupportedModel: a setting cannot be right. Nothing was made in the home.
        Unavailable: the home has lost something, or cannot be written.
    """
    check_base_and_devices(settings)
    limits = ConnectionLimits(_allow_connections(settings.max_connections))
    metrics = Metrics(settings.served_name)
    with (
        open_home(settings, patience_s=_DATABASE_S) as records,
        running_front(settings, records, metrics, say) as front,
        _worker(_with_dtype(settings, front.base), records.jobs) as worker,
        housekeeping(settings, records),
    ):
        services = wire(settings, records, front, metrics, worker)
        app = create_app(services)
        collect_garbage_rarely()
        if front.loops:
            watch(front.loops, front.give_up)
        with (
            watching_keys(services.keys, services.limits, services.tenants.shares),
            writing_usage(services.tenants.usage, services.usage),
            keeping_history(services.history, services.usage, services.engine),
            removing_owners(records, settings.home_path, front.residency.forget),
        ):
            _serve(settings, app, front.stop, listener, limits)


def collect_garbage_rarely() -> None:
    """Make Python's collector run less: it pauses every stream, and requests hardly need it."""
    gc.freeze()  # the objects up to here stay
    gc.set_threshold(20_000, 20, 20)


def _serve(
    settings: Settings,
    app: ASGIApp,
    stop: Callable[[float], None],
    listener: socket.socket,
    limits: ConnectionLimits,
) -> None:
    """Listen until a signal says to stop, then drain."""
    config = uvicorn.Config(
        app,
        http=http_protocol(describe, limits),
        ws="none",
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        log_config=None,
        access_log=False,  # `RequestIds` logs requests
        timeout_graceful_shutdown=int(settings.drain_timeout_s + _CLOSING_S),
        lifespan="off",
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    drain = partial(stop, settings.drain_timeout_s)
    _Server(config, drain, f"http://{shown}:{port}").run(sockets=[listener])


def _allow_connections(most: int) -> int:
    """Let this process open so many connections beside its files; returns how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        say(
            f"at most {allowed - _OTHER_FILES} connections and not {most}, because this process "
            f"may have {hard} open files: raise `ulimit -Hn`, or lower --max-connections"
        )
    return max(allowed - _OTHER_FILES, 1)


class _Server(uvicorn.Server):
    """uvicorn that prints when it listens and stops the engine while it waits for answers."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None], address: str) -> None:
        super().__init__(config)
        self._stop = stop
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(f"the console is at {self._address}/console")
        print(f"serving at {self._address}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        say("stopping: running requests may finish")
        drain = threading.Thread(target=self._stop, daemon=True)
        drain.start()
        await super().shutdown(sockets)
        if not self.force_exit:  # a second Ctrl-C
            await asyncio.to_thread(drain.join)


def _with_dtype(settings: Settings, base: BaseModel) -> Settings:
    """The settings of a worker that trains in the number format in which this CPU serves."""
    if base.device.type != "cpu" or settings.worker_device not in ("auto", "cpu"):
        return settings
    dtype = str(base.dtype).removeprefix("torch.")
    return settings.model_copy(update={"dtype": dtype})


@contextlib.contextmanager
def _worker(settings: Settings, jobs: JobQueue) -> Iterator[Supervisor | None]:
    """Run a training worker as a process, with these settings, if they ask for one."""
    if not settings.worker or trains_in_thread(settings):
        yield None
        return
    supervisor = Supervisor(
        command("worker", "--supervised"),
        {"GOMP_SPINCOUNT": _SPINS} | environment(settings),
        on_end=lambda pid, how: jobs.abandon(worker_id(pid), how),
    )
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
