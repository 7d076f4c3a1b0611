"""Runs one engine in a process of its own, and starts it again when it ends. Knows no requests."""

import contextlib
import logging
import os
import pickle
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import cast

from adapters_store.work_folders import WorkFolders
from server.errors import Unavailable
from server.replicas.connection import PATIENCE_S, EngineConnection
from server.replicas.messages import FromEngine, Ready, StartFailed
from server.supervisor import Supervisor

log = logging.getLogger(__name__)

_STOP_GRACE_S = 5.0  # for a child to report that it stopped, after the drain timeout

OnReady = Callable[[EngineConnection], None]


class Replica:
    """Runs `command` with `--connect ADDRESS` behind it as a child process until stopped.

    The child connects to that address, sends Ready, and then answers requests. When it ends or
    hangs, its open answers fail, and another child is started. It never outlives this process: see
    Supervisor.

    Args:
        environment: the whole environment of the child.
        on_end: as in `Supervisor`.

    Attributes:
        on_ready: called with the connection of each child that is ready, before it is used.
        connection: to the child while one is ready.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_end: Callable[[int, str], None] = lambda _pid, _how: None,
    ) -> None:
        self.number = number
        self._on_end = on_end
        self.on_ready: OnReady | None = None
        self._folder = _private_folders().make()  # for the socket: others must not connect
        self._listener = Listener(str(self._folder / "socket"), family="AF_UNIX")
        self._supervisor = Supervisor(
            [*command, "--connect", str(self._listener.address)],
            environment,
            name=f"engine {number}",
            on_end=self._ended,
        )
        self.connection: EngineConnection | None = None
        self._stopping = False
        self._started = threading.Event()  # or the first start has failed
        self._start_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"replica-{number}", daemon=True)

    @property
    def alive(self) -> bool:
        """True while the engine takes requests and makes progress."""
        return not self.problem and not self._stopping

    @property
    def problem(self) -> str:
        """What is wrong with the engine, in words; empty if nothing is."""
        if self.connection is None and self._supervisor.alive:
            return f"engine {self.number} is starting"
        return self._supervisor.problem

    @property
    def queued(self) -> int:
        """Answers that run or wait there."""
        connection = self.connection
        return 0 if connection is None else connection.capacity.queued

    @property
    def restarts(self) -> int:
        """How often its process was started again."""
        return self._supervisor.restarts

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._supervisor.pid

    def start(self) -> None:
        """Start the child; `wait` for it."""
        self._thread.start()
        self._supervisor.start()

    def wait(self) -> EngineConnection:
        """Wait until the engine is ready for the first time.

        Raises:
            Exception: the child reported why it cannot serve.
            Unavailable: it ended without a report, or just after it was ready.
        """
        self._started.wait()
        if self._start_error is not None:
            raise self._start_error
        if self.connection is None:
            raise _gone(self.number, self._stopping)
        return self.connection

    def stop(self, drain_timeout_s: float) -> None:
        """Let running answers end, then end the process. Twice does nothing."""
        if self._stopping:
            return
        self._stopping = True
        connection, end = self.connection, time.monotonic() + drain_timeout_s + _STOP_GRACE_S
        if connection is not None:
            connection.stop(drain_timeout_s)
            connection.stopped.wait(max(end - time.monotonic(), 0))
        self._supervisor.stop()
        with contextlib.suppress(OSError):  # ends `accept`, if the thread waits there
            Client(self._listener.address).close()
        self._thread.join()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        while not self._stopping:
            with self._listener.accept() as pipe, contextlib.suppress(EOFError, OSError):
                self._read(cast("Connection[object, object]", pipe))

    def _read(self, pipe: "Connection[object, object]") -> None:
        """Handle the messages of one child until it is gone."""
        connection: EngineConnection | None = None
        try:
            while True:
                for message in cast(list[FromEngine], pickle.loads(pipe.recv_bytes())):
                    match message:
                        case Ready(facts):
                            connection = self._ready(EngineConnection(pipe, facts))
                        case StartFailed(error):
                            self._start_failed(error)
                        case _:
                            assert connection is not None, "an engine's first message is Ready"
                            connection.receive(message)
        finally:
            self.connection = None
            if connection is not None:
                connection.fail(_gone(self.number, self._stopping))

    def _ready(self, connection: EngineConnection) -> EngineConnection:
        if self.on_ready is not None:
            self.on_ready(connection)
        self.connection = connection
        self._started.set()
        return connection

    def _ended(self, pid: int, how: str) -> None:
        self._start_failed(None)
        self._on_end(pid, how)

    def _start_failed(self, error: Exception | None) -> None:
        """A child reported an error, or ended (None). Matters only until one was ready."""
        if self._started.is_set():
            if error is not None:
                log.error("engine %d did not start again: %s", self.number, error)
            return
        self._start_error = error or Unavailable(
            f"the process of engine {self.number} ended before it was ready; its log is above"
        )
        self._started.set()


class WorkerProxy:
    """The training worker in a replica's process, as the API sees it. Waits only shortly for it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    @property
    def alive(self) -> bool:
        """True while it runs; False while its engine is being started again."""
        return not self.problem

    @property
    def problem(self) -> str:
        """What is wrong with it or with its engine, in words; empty if nothing is."""
        if problem := self._replica.problem:
            return problem
        return "" if self._state()[0] else "training in the engine's process has ended"

    @property
    def restarts(self) -> int:
        """How often it was started again, by itself or with its engine."""
        return self._replica.restarts + self._state()[1]

    def _state(self) -> tuple[bool, int]:
        state: object = None
        if (connection := self._replica.connection) is not None:
            with contextlib.suppress(Unavailable):  # it ended just now
                state = connection.ask("worker").answer(PATIENCE_S)
        return cast("tuple[bool, int] | None", state) or (False, 0)


def _private_folders() -> WorkFolders:
    """Folders that only this user may enter. What killed servers left of them is removed now.

    Raises:
        Unavailable: somebody else has made their folder, or may enter it.
    """
    user = os.getuid()
    root = Path(tempfile.gettempdir()) / f"verandah-{user}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        raise Unavailable(f"others may enter {root}: remove it, or set TMPDIR to a folder of yours")
    return WorkFolders(root)


def _gone(number: int, stopping: bool) -> Unavailable:
    if stopping:
        return Unavailable("the engine has stopped; try again when the server is back")
    return Unavailable(
        f"the process of engine {number} hung or ended before it had answered, and is started "
        "again: try again in a moment"
    )
