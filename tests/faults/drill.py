"""Everything that may break, broken on purpose: the real worker, its real disk and database.

    python -m tests.faults.drill [SCENARIO ...] [--seed N] [--rounds N] [--minutes M]

A round accepts some jobs, lets workers suffer, lets a last one work in peace, and then holds the
home to what was promised (`books.check`). A seed says what happens, and at which change; the moment
at which a signal meets a process it cannot say. It is a program of its own because it forks, which
a process with other threads must not.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import Conflict, Unavailable
from server.training.worker import run_worker
from tests.faults.books import ORDER, Accepted, Broken, Kind, check, submit, unfinished
from tests.faults.injuries import PHASES, Clock, Injuries
from tests.training.workplace import Workplace, load_tiny

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
            _wait(self._fork(partial(self._serve, told), suffered))
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

    def worker(self, injuries: Injuries | None = None, *, patience_s: float = 60) -> int:
        """Start a worker; it ends when nothing waits. Returns its process id."""
        return self._fork(partial(self._work, patience_s), injuries or Injuries())

    def _work(self, patience_s: float) -> None:
        place = Workplace.at(self.home)
        parts = place.parts(lease_s=LEASE_S, load=lambda: self.loaded)
        desk = dataclasses.replace(parts.desk, patience_s=patience_s)
        run_worker(dataclasses.replace(parts, desk=desk), _UntilIdle(place))

    def _fork(self, work: Callable[[], None], injuries: Injuries) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        logging.basicConfig(filename=self.home / "log", level=logging.INFO, force=True)
        try:
            injuries.suffer(self.clock, BUSY_MS)
            work()
            os._exit(0)
        except Unavailable:
            os._exit(3)  # as the program does; its supervisor starts another
        except BaseException:
            logging.exception("a fault")
            os._exit(1)

    def bury(self, pid: int) -> None:
        """Wait for a worker's end, and tell the queue as the server's supervisor does."""
        code = _wait(pid)
        assert code in (0, 3, -signal.SIGKILL), f"a worker ended with {code}"
        if self.supervised:
            with contextlib.suppress(Unavailable), self.place() as place:
                place.queue.abandon(f"worker-{pid}")

    def finish(self, expected: Mapping[Kind, Mapping[str, Tensor]]) -> Counter[str]:
        """Let a last worker work in peace, and check."""
        self.clock.set(0.0)
        began = time.monotonic()
        pid = self.worker()
        while _running(pid):
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


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def killed_anywhere(round_: Round) -> None:
    """At a change, counted; or by a signal, at any moment."""
    chance = round_.random
    round_.accept([Injuries(die_at=chance.randrange(60)) for _ in range(2)])
    for _ in range(4):
        if chance.random() < 0.5:
            round_.bury(round_.worker(Injuries(die_at=chance.randrange(10, 220))))
            continue
        pid = round_.worker()
        time.sleep(chance.uniform(0.05, 1.2))
        os.kill(pid, signal.SIGKILL)
        round_.bury(pid)


def killed_in_each_phase(round_: Round) -> None:
    """Before and after what each phase is about."""
    round_.accept()
    phases = [(name, when) for name in PHASES for when in ("before", "after")]
    round_.random.shuffle(phases)
    for phase in phases[:5]:
        visit = round_.random.choice((1, 2, 3))
        round_.bury(round_.worker(Injuries(phase=phase, visit=visit)))


def disk_full(round_: Round) -> None:
    """For a while; the API is met by it as well."""
    chance = round_.random
    round_.accept()
    for _ in range(2):
        start = chance.randrange(0, 120)
        full = range(start, start + chance.choice((1, 5, 40, 120)))
        deadly = chance.choice((None, None, start + chance.randrange(200)))
        round_.bury(round_.worker(Injuries(full=full, die_at=deadly)))


def disk_full_for_good(round_: Round) -> None:
    """Until patience ends: then the jobs fail, and say why."""
    round_.may_fail = frozenset({"disk_full"})
    round_.accept()
    start = round_.random.randrange(100)
    round_.bury(round_.worker(Injuries(full=range(start, 10**9)), patience_s=0.3))


def database_gone(round_: Round) -> None:
    """Locked by somebody, or moved away and back, while two workers are at it."""
    chance = round_.random
    round_.accept()
    workers = [round_.worker() for _ in range(2)]
    file = round_.home / "verandah.db"
    for _ in range(2):
        time.sleep(chance.uniform(0.1, 0.8))
        if chance.random() < 0.5:
            _lock(file, chance.uniform(0.2, 1.0))
        else:
            _move_away(file, chance.uniform(0.2, 1.0))
    for pid in workers:
        round_.bury(pid)


def _lock(file: Path, seconds: float) -> None:
    connection = sqlite3.connect(file, isolation_level=None, timeout=10)
    connection.execute("BEGIN EXCLUSIVE")
    time.sleep(seconds)
    connection.rollback()
    connection.close()


def _move_away(file: Path, seconds: float) -> None:
    away = file.with_suffix(".away")
    file.rename(away)
    time.sleep(seconds)
    assert not file.exists(), "somebody made a new database"
    away.rename(file)


def clock_jumps(round_: Round) -> None:
    """An hour ahead, an hour back, with two workers at it, one of which may die."""
    chance = round_.random
    round_.accept()
    injuries = Injuries(die_at=chance.choice((None, chance.randrange(20, 200))))
    workers = [round_.worker(injuries), round_.worker()]
    for _ in range(3):
        time.sleep(chance.uniform(0.05, 0.7))
        round_.clock.set(chance.choice((-3600.0, 0.0, 3600.0)))
    time.sleep(0.3)
    round_.clock.set(0.0)
    for pid in workers:
        round_.bury(pid)


def workers_race(round_: Round) -> None:
    """Three at once, of which some hang for longer than the lease, and then go on."""
    chance = round_.random
    round_.accept()
    workers = [round_.worker() for _ in range(3)]
    for _ in range(3):
        pid = chance.choice(workers)
        time.sleep(chance.uniform(0.05, 0.5))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(chance.uniform(0.5, 2.5) * LEASE_S)
        os.kill(pid, signal.SIGCONT)
    for pid in workers:
        round_.bury(pid)


def owners_meddle(round_: Round) -> None:
    """They cancel, pause and resume, while one worker of two is killed."""
    chance = round_.random
    round_.accept()
    round_.may_fail = frozenset({"cancelled"})
    workers = [round_.worker(Injuries(die_at=chance.randrange(30, 250))), round_.worker()]
    for _ in range(8):
        time.sleep(chance.uniform(0.02, 0.3))
        meddled = chance.choice(round_.accepted)
        with round_.place() as place, contextlib.suppress(Conflict):
            wish = chance.choice((place.queue.cancel, place.queue.pause, place.queue.resume))
            wish(meddled.owner, meddled.job)
    with round_.place() as place:
        for entry in round_.accepted:
            with contextlib.suppress(Conflict):  # it is not paused, or has ended
                place.queue.resume(entry.owner, entry.job)
    for pid in workers:
        round_.bury(pid)


def files_cut_short(round_: Round) -> None:
    """Uploads, checkpoints and figures lose their ends while nobody works."""
    chance = round_.random
    round_.accept()
    round_.bury(round_.worker(Injuries(die_at=chance.randrange(60, 220))))
    jobs = round_.home / "jobs"
    found = sorted(path for path in jobs.rglob("*") if path.is_file() and path.suffix != ".lock")
    for path in chance.sample(found, min(len(found), 4)):
        os.truncate(path, chance.randrange(path.stat().st_size + 1))
    with round_.place() as place:
        victim = chance.choice(round_.accepted)
        upload = place.files.path(victim.owner, place.queue.get(*victim[:2]).training_file)
    os.truncate(upload, chance.randrange(upload.stat().st_size))
    round_.damaged = frozenset({upload.name})


SCENARIOS: Mapping[str, Callable[[Round], None]] = {
    scenario.__name__: scenario
    for scenario in (
        killed_anywhere,
        killed_in_each_phase,
        disk_full,
        disk_full_for_good,
        database_gone,
        clock_jumps,
        workers_race,
        owners_meddle,
        files_cut_short,
    )
}


def play(
    name: str,
    seed: int,
    loaded: tuple[BaseModel, ChatTokenizer],
    expected: dict[Kind, dict[str, Tensor]],
) -> Counter[str]:
    """One round. Raises what was found, with the home left as it is for whoever looks."""
    home = Path(tempfile.mkdtemp(prefix=f"{name}-{seed}-"))
    round_ = Round(home, random.Random(f"{name}/{seed}"), loaded)
    round_.supervised = round_.random.random() < 0.7
    try:
        SCENARIOS[name](round_)
        ends = round_.finish(expected)
    except Exception as error:
        raise Broken(f"{name}, seed {seed}, in {home}: {error}") from error
    shutil.rmtree(home)
    return ends


def undisturbed(loaded: tuple[BaseModel, ChatTokenizer]) -> dict[Kind, dict[str, Tensor]]:
    """What the kinds of jobs learn when nothing happens to them."""
    with tempfile.TemporaryDirectory() as folder:
        round_ = Round(Path(folder), random.Random(0), loaded)
        round_.accept()
        assert _wait(round_.worker()) == 0
        with round_.place() as place:
            found: dict[Kind, dict[str, Tensor]] = {}
            for entry in round_.accepted:
                job = place.queue.get(entry.owner, entry.job)
                if job.fine_tuned_model:
                    name, _, version = job.fine_tuned_model.partition("@")
                    ref = place.store.resolve(entry.owner, name, int(version))
                    found[entry.kind] = dict(place.store.load(ref)[1])
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS])
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--rounds", type=int, default=1, help="of each scenario")
    parser.add_argument("--minutes", type=float, help="instead: as many rounds as go into them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_tiny()
    expected = undisturbed(loaded)
    began = time.monotonic()
    for number in range(10**9 if options.minutes else options.rounds):
        for name in options.scenario or SCENARIOS:
            started = time.monotonic()
            ends = play(name, options.seed + number, loaded, expected)
            seconds = time.monotonic() - started
            print(f"{name} {options.seed + number}: {dict(ends)}, {seconds:.1f} s", flush=True)
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                return


if __name__ == "__main__":
    main()
