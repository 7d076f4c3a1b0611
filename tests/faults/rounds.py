"""One round of the drill: a home, what is accepted there, and the processes that work in it.

A process that forks must have no other threads, and no file of SQLite's open.
"""

import contextlib
import dataclasses
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import Unavailable
from server.training.job.worker_loop import run_worker
from tests.faults.books import ORDER, Accepted, Kind, check, submit, unfinished
from tests.faults.injuries import Clock, Injuries
from tests.training.workplace import Workplace

LEASE_S = 0.6
BUSY_MS = 150
WHOLE_S = 120.0
"""By then a round in which nothing more happens is over, on a slow machine too."""


@dataclass
class Round:
    """One home, its clock, and who works there."""

    home: Path
    random: random.Random
    loaded: tuple[BaseModel, ChatTokenizer]
    clock: Clock = field(default_factory=Clock)
    accepted: list[Accepted] = field(default_factory=list)
    may_fail: frozenset[str] = frozenset()
    damaged: frozenset[str] = frozenset()
    supervised: bool = True
    children: list[int] = field(default_factory=list)

    @contextmanager
    def place(self) -> Iterator[Workplace]:
        """Opened for a moment: a process must not fork with SQLite's files open."""
        place = Workplace.at(self.home)
        try:
            yield place
        finally:
            place.database.close()

    def accept(self, injuries: Sequence[Injuries] = ()) -> None:
        """A server takes in the jobs, however often it is killed meanwhile."""
        told = self.home / "accepted"
        for suffered in [*injuries, Injuries()]:
            wait(self._fork(partial(self._serve, told), suffered))
        self.accepted = [
            Accepted(owner, job, kind)  # type: ignore[arg-type]
            for owner, job, kind in (line.split() for line in told.read_text().splitlines())
        ]

    def _serve(self, told: Path) -> None:
        """Accept what is not accepted yet. The note is the client's, who saw the answer."""
        place = Workplace.at(self.home)
        seen = told.read_text().count("\n") if told.exists() else 0
        for owner, kind in ORDER[seen:]:
            entry = submit(place, owner, kind)
            with told.open("a") as file:
                file.write(f"{entry.owner} {entry.job} {entry.kind}\n")

    def worker(self, injuries: Injuries | None = None, *, disk_retry_s: float = 60) -> int:
        """Start a worker; it ends when nothing waits. Returns its process id."""
        return self._fork(partial(self._work, disk_retry_s), injuries or Injuries())

    def _work(self, disk_retry_s: float) -> None:
        place = Workplace.at(self.home)
        parts = place.parts(lease_s=LEASE_S, load=lambda: self.loaded)
        services = dataclasses.replace(parts.services, disk_retry_s=disk_retry_s)
        run_worker(dataclasses.replace(parts, services=services), _UntilIdle(place))

    def _fork(self, work: Callable[[], None], injuries: Injuries) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            self.children.append(pid)
            return pid
        logging.basicConfig(filename=f"{self.home}.log", level=logging.INFO, force=True)
        try:
            injuries.suffer(self.clock, BUSY_MS)
            work()
            os._exit(0)
        except Unavailable:
            os._exit(3)  # as the program does; its supervisor starts another
        except BaseException:
            logging.exception("a fault")
            os._exit(1)

    def leave_nobody(self) -> None:
        """End whoever is left, after a round that failed."""
        for pid in self.children:
            with contextlib.suppress(ChildProcessError):  # it was waited for
                if running(pid):
                    os.kill(pid, signal.SIGKILL)

    def bury(self, pid: int) -> None:
        """Wait for a worker's end, and tell the queue as the server's supervisor does."""
        code = wait(pid)
        assert code in (0, 3, -signal.SIGKILL), f"a worker ended with {code}"
        if self.supervised:
            with contextlib.suppress(Unavailable), self.place() as place:
                place.queue.abandon(f"worker-{pid}", "died")

    def finish(self, expected: Mapping[Kind, Mapping[str, Tensor]]) -> Counter[str]:
        """Let a last worker work in peace, and check."""
        self.clock.set(0.0)
        began = time.monotonic()
        pid = self.worker()
        while running(pid):
            assert time.monotonic() - began < WHOLE_S, "the last worker does not come to an end"
            time.sleep(0.02)
        with self.place() as place:
            assert not unfinished(place), "jobs wait, and no worker takes them"
            return check(place, self.accepted, expected, self.may_fail, self.damaged)


class _UntilIdle(threading.Event):
    """Set once nothing waits; a worker asks whenever it has nothing to do."""

    def __init__(self, place: Workplace) -> None:
        super().__init__()
        self._place = place

    def wait(self, timeout: float | None = None) -> bool:
        with contextlib.suppress(Unavailable):
            if not unfinished(self._place):
                self.set()
        return super().wait(timeout)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
