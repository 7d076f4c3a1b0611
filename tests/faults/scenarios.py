"""What breaks in a round of the drill, one function for each kind of trouble."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from server.errors import Conflict
from tests.faults.injuries import PHASES, Injuries
from tests.faults.rounds import LEASE_S, Round

_DISK_BYTES = 8 * 2**20


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
    round_.bury(round_.worker(Injuries(full=range(start, 10**9)), disk_retry_s=0.3))


def disk_really_full(round_: Round) -> None:
    """A small disk of its own, with the database on it too. Where we may mount one."""
    chance = round_.random
    if not _mounted(round_.home):
        print("disk_really_full: no right to mount a disk here", flush=True)
        round_.accept()
        return
    round_.accept()
    workers = [round_.worker() for _ in range(2)]
    for _ in range(3):
        time.sleep(chance.uniform(0.1, 0.8))
        ballast = round_.home / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        time.sleep(chance.uniform(0.1, 1.0))
        ballast.unlink(missing_ok=True)
    for pid in workers:
        round_.bury(pid)


def _mounted(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


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
        disk_really_full,
        database_gone,
        clock_jumps,
        workers_race,
        owners_meddle,
        files_cut_short,
    )
}
