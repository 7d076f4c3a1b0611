"""One engine in a process of its own: started, watched, started again. Knows no requests."""

import contextlib
import logging
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Client, Connection, Listener
from typing import cast

from server.errors import Unavailable
from server.replicas.connection import EngineConnection
from server.replicas.messages import FromEngine, Ready, StartFailed
from server.supervisor import Supervisor

log = logging.getLogger(__name__)

_LAST_WORDS_S = 5.0  # beyond the time that running answers are given

OnReady = Callable[[EngineConnection], None]


class Replica:
    """Runs `command` with `--connect ADDRESS` behind it as a child process until stopped.

    The child connects to that address, says that it is ready, and then answers. When it ends, all
    that waits for it fails, and another is started. It never outlives this process: see Supervisor.

    Args:
        environment: the whole environment of the child.
        on_end: told the process id of each child that has ended, before the next one starts.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_end: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        self.number = number
        self._on_end = on_end
        self.on_ready: OnReady | None = None  # told of each child that is ready, before others are
        self._listener = Listener(family="AF_UNIX")  # in a folder that only we may enter
        self._supervisor = Supervisor(
            [*command, "--connect", str(self._listener.address)],
            environment,
            name=f"engine {number}",
            on_end=self._ended,
        )
        self._link: EngineConnection | None = None
        self._stopping = False
        self._begun = threading.Event()
        self._unfit: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"replica-{number}", daemon=True)

    @property
    def alive(self) -> bool:
        """True while the engine takes requests."""
        return self._link is not None and not self._stopping

    @property
    def queued(self) -> int:
        """Answers that run or wait there."""
        link = self._link
        return 0 if link is None else link.room.queued

    @property
    def restarts(self) -> int:
        """How often its process was started again."""
        return self._supervisor.restarts

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._supervisor.pid

    @property
    def link(self) -> EngineConnection:
        """The way to the engine. Raises Unavailable while there is none."""
        link = self._link
        if link is None:
            raise Unavailable(
                f"engine {self.number} is being started again; try again in a moment, and see "
                "/health"
            )
        return link

    def start(self) -> None:
        """Start the child; `wait` for it."""
        self._thread.start()
        self._supervisor.start()

    def wait(self) -> EngineConnection:
        """Wait until the engine is ready for the first time.

        Raises:
            Exception: what the child said keeps it from serving.
            Unavailable: it ended without a word.
        """
        self._begun.wait()
        if self._unfit is not None:
            raise self._unfit
        return self.link

    def stop(self, drain_timeout_s: float) -> None:
        """Let running answers end, then end the process. Twice does nothing."""
        if self._stopping:
            return
        self._stopping = True
        link, end = self._link, time.monotonic() + drain_timeout_s + _LAST_WORDS_S
        if link is not None:
            link.stop(drain_timeout_s)
            link.stopped.wait(max(end - time.monotonic(), 0))
        self._supervisor.stop()
        with contextlib.suppress(OSError):  # wakes the thread, should it wait for a child
            Client(self._listener.address).close()
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while not self._stopping:
            with self._listener.accept() as connection, contextlib.suppress(EOFError, OSError):
                self._follow(cast("Connection[object, object]", connection))

    def _follow(self, connection: "Connection[object, object]") -> None:
        """Hear one child until it is gone."""
        link: EngineConnection | None = None
        try:
            while True:
                for message in cast(list[FromEngine], pickle.loads(connection.recv_bytes())):
                    match message:
                        case Ready(facts):
                            link = self._ready(EngineConnection(connection, facts))
                        case StartFailed(error):
                            self._over(error)
                        case _:
                            assert link is not None, "an engine says first that it is ready"
                            link.take(message)
        finally:
            self._link = None
            if link is not None:
                link.fail(_gone(self.number, self._stopping))

    def _ready(self, link: EngineConnection) -> EngineConnection:
        if self.on_ready is not None:
            self.on_ready(link)
        self._link = link
        self._begun.set()
        return link

    def _ended(self, pid: int) -> None:
        self._over(None)
        self._on_end(pid)

    def _over(self, error: Exception | None) -> None:
        """A child ended, or said why it is about to."""
        if self._begun.is_set():
            if error is not None:
                log.error("engine %d cannot be started again: %s", self.number, error)
            return
        self._unfit = error or Unavailable(
            f"the process of engine {self.number} ended before it was ready; what it said is above"
        )
        self._begun.set()


class WorkerProxy:
    """The training worker in a replica's process, as the API sees it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    @property
    def alive(self) -> bool:
        """True while it runs; False while its engine is being started again."""
        return self._state()[0]

    @property
    def restarts(self) -> int:
        """How often it was started again, by itself or with its engine."""
        return self._replica.restarts + self._state()[1]

    def _state(self) -> tuple[bool, int]:
        try:
            return cast("tuple[bool, int] | None", self._replica.link.call("worker")) or (False, 0)
        except Unavailable:
            return False, 0


def _gone(number: int, stopping: bool) -> Unavailable:
    if stopping:
        return Unavailable("the engine has stopped; try again when the server is back")
    return Unavailable(
        f"the process of engine {number} ended while this was asked of it; it is being started "
        "again: try again in a moment"
    )
