"""The worker is kept running and never outlives its parent. Children are one-line programs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server.loop_progress import Progress
from server.supervisor import Supervisor
from server.wiring.process import end_soon, end_when_hung

SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"

Supervise = Callable[..., Supervisor]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Starts a supervisor of a one-line Python program; stops it in the end."""
    made: list[Supervisor] = []

    def start(program: str, *, stop_timeout_s: float = 5, **more: Any) -> Supervisor:
        supervisor = Supervisor(
            [sys.executable, "-c", program], os.environ, stop_timeout_s=stop_timeout_s, **more
        )
        made.append(supervisor)
        supervisor.start()
        return supervisor

    yield start
    for supervisor in made:
        supervisor.stop()


def eventually(condition: Callable[[], bool], timeout_s: float = 10) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_killed_child_is_started_again(supervise: Supervise) -> None:
    supervisor = supervise(SLEEP)
    first = supervisor.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: supervisor.restarts == 1 and supervisor.alive)
    assert supervisor.pid not in (None, first)


def test_who_waits_is_answered_before_a_process_ends_of_its_device() -> None:
    program = f"""
import time
from {end_soon.__module__} import {end_soon.__name__}
{end_soon.__name__}()
print("answered", flush=True)
time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert (ended.stdout, ended.returncode) == (b"answered\n", os.EX_TEMPFAIL)


def test_who_cares_is_told_of_each_end_before_the_next_start(supervise: Supervise) -> None:
    told: list[tuple[int, str]] = []

    def on_end(pid: int, how: str) -> None:
        told.append((pid, how))
        raise RuntimeError("the next one is started all the same")

    supervisor = supervise(SLEEP, on_end=on_end)
    first = supervisor.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: supervisor.restarts == 1 and supervisor.alive)
    assert told == [(first, "ended with status -9")]
    second = supervisor.pid
    assert second is not None
    supervisor.stop()
    assert told[1:] == [(second, "was stopped")]


BEATS = "import os, time\nwhile True: os.write(0, bytes([2])); time.sleep(0.1)"


def test_a_child_that_hangs_is_told_killed_and_replaced(supervise: Supervise) -> None:
    told: list[str] = []
    supervisor = supervise(BEATS, on_end=lambda _pid, how: told.append(how))
    first = supervisor.pid
    assert first is not None
    assert eventually(lambda: supervisor._allowed_s == 2)
    assert (supervisor.alive, supervisor.problem) == (True, "")
    os.kill(first, signal.SIGSTOP)
    assert eventually(lambda: not supervisor.alive)
    assert "no progress" in supervisor.problem
    assert eventually(lambda: supervisor.restarts == 1 and supervisor.alive)
    assert gone(first), "it may not wake and go on"
    assert [how.split(":")[0] for how in told] == ["hung"]


def test_a_child_that_makes_progress_is_left_alone(supervise: Supervise) -> None:
    supervisor = supervise(BEATS)
    first = supervisor.pid
    time.sleep(3)
    assert (supervisor.pid, supervisor.problem) == (first, "")


def test_a_supervisor_that_was_stopped_itself_kills_nobody() -> None:
    parent = (
        "import os, sys, time\n"
        "from server.supervisor import Supervisor\n"
        f"s = Supervisor([sys.executable, '-c', {BEATS!r}], os.environ)\n"
        "s.start()\n"
        "print(s.pid, flush=True)\n"
        "while True:\n"
        "    input()\n"
        "    print(s.pid, s.restarts, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(1)
    for one in (process.pid, child):
        os.kill(one, signal.SIGSTOP)
    time.sleep(3)
    for one in (process.pid, child):
        os.kill(one, signal.SIGCONT)
    time.sleep(1)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline().split() == [str(child), "0"]
    process.kill()
    process.communicate()
    assert eventually(lambda: gone(child)), "it cannot write its beats any more"


def test_a_process_whose_loop_hangs_ends_itself() -> None:
    program = f"""
import time
from {Progress.__module__} import Progress
from {end_when_hung.__module__} import end_when_hung
progress = Progress()
progress.begin("a step", 0.2)
end_when_hung(progress, supervised=False)
time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert ended.returncode == os.EX_TEMPFAIL
    assert b"a step has taken over" in ended.stderr


def test_a_child_that_cannot_live_is_not_started_in_a_tight_loop(supervise: Supervise) -> None:
    supervisor = supervise("raise SystemExit(3)")
    assert eventually(lambda: supervisor.restarts == 1)
    time.sleep(0.5)
    assert supervisor.restarts <= 2


def test_stopping_ends_the_child(supervise: Supervise) -> None:
    supervisor = supervise(SLEEP)
    pid = supervisor.pid
    assert pid is not None
    supervisor.stop()
    assert gone(pid)
    assert not supervisor.alive
    assert supervisor.restarts == 0


def test_a_child_that_will_not_end_is_killed(supervise: Supervise) -> None:
    supervisor = supervise(STUBBORN, stop_timeout_s=0.3)
    time.sleep(0.3)  # until it ignores the signal
    pid = supervisor.pid
    assert pid is not None
    supervisor.stop()
    assert gone(pid)


def test_a_child_notices_that_its_parent_was_killed() -> None:
    parent = (
        "import os, sys, time\n"
        "from server.supervisor import Supervisor\n"
        "s = Supervisor([sys.executable, '-c', 'import sys; sys.stdin.read()'], os.environ)\n"
        "s.start()\n"
        "print(s.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()
    assert eventually(lambda: gone(child))
