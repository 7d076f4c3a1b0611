"""A program: the whole server with training in its engine's process, tried once.

    python -m tests.cli.drill --device cuda

It trains while it answers, loses its engine, starts another that goes on, replaces one that hangs,
and ends when it is told. A line for each thing looked at; the status is 1 if one was wrong. About
100 s, mostly starts.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx

from clients.python import Client
from server.db.session import Database
from server.jobs.queue.job import JobStatus
from server.jobs.queue.job_queue import JobQueue
from tests.api.running import eventually
from tests.cli.test_serve import HELLO, alive, children, told_of
from tests.training.workplace import lines

_TOKENS = 200


class Drill:
    """What was looked at, printed as it comes."""

    def __init__(self) -> None:
        self.good = True
        self._last = time.monotonic()

    def see(self, what: str, good: bool, told: str = "") -> None:
        now = time.monotonic()
        self.good &= good
        print(
            f"{'ok' if good else 'WRONG':6}{what:42}{now - self._last:6.1f} s  {told}", flush=True
        )
        self._last = now


@contextmanager
def server(home: Path, device: str, log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Its process, and its address once it listens."""
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--device", device]
    options = ["--engine-process", "yes", "--worker-process", "no", "--kv-memory-mb", "256"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *options],
            env=environment | {"VERANDAH_HOME": str(home), "VERANDAH_LEASE_S": "1000"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise SystemExit(f"the server does not start:\n{log.read_text()}")
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def gaps(client: Client) -> str:
    """Milliseconds between the pieces of one answer."""
    times = [
        time.perf_counter()
        for _ in client.chat("base", HELLO, max_tokens=_TOKENS, ignore_eos=True, seed=1)
    ]
    found = sorted(b - a for a, b in pairwise(times))
    p50, p95 = (found[int(share * len(found))] * 1e3 for share in (0.5, 0.95))
    return f"{len(times)} pieces, {p50:.2f} ms between them, p95 {p95:.2f}"


def steps(client: Client, job: str) -> int:
    """How far a job's events tell that it is."""
    found = [re.match(r"Step (\d+)/", event.message) for event in client.events(job)]
    return max((int(match[1]) for match in found if match), default=-1)


def while_all_is_well(drill: Drill, client: Client, url: str, folder: Path) -> str:
    drill.see("one stream, nothing trains", True, gaps(client))
    file = folder / "lines.jsonl"
    file.write_bytes(lines(40))
    job = client.train(client.upload(file).id, hyperparameters={"n_epochs": 1000, "rank": 4}).id
    drill.see("a job has begun", eventually(lambda: told_of(client, job, "Step 0/"), 60))
    up = 'training_worker_up{model_name="base"} 1.0'
    drill.see("the worker is up", up in httpx.get(f"{url}/metrics").text)
    drill.see("one stream, beside training", True, gaps(client))
    before = steps(client, job)
    moved = eventually(lambda: steps(client, job) > before, 20)
    drill.see("training goes on", moved, f"step {steps(client, job)}")
    return job


def when_it_dies(drill: Drill, client: Client, url: str, job: str, engine: int) -> None:
    def status() -> object:
        return httpx.get(f"{url}/health", timeout=10).json()["status"]

    os.kill(engine, signal.SIGKILL)
    drill.see("/health says that the engine is gone", eventually(lambda: status() == "degraded", 5))
    drill.see("another is there", eventually(lambda: status() == "ok", 90))
    drill.see("it goes on with the job", eventually(lambda: told_of(client, job, "attempt 2"), 20))
    drill.see("and answers", True, gaps(client))


def when_it_hangs(drill: Drill, client: Client, url: str, job: str, engine: int) -> None:
    """The engine, and training in it, is stopped as by a debugger."""

    def answers(path: str) -> httpx.Response:
        return httpx.get(f"{url}{path}", timeout=2)

    os.kill(engine, signal.SIGSTOP)
    told = eventually(lambda: "no progress" in answers("/health").text, 15)
    drill.see("/health tells of the hang", told, answers("/health").text)
    drill.see("/ready says no", answers("/ready").status_code == 503)
    down = 'training_worker_up{model_name="base"} 0.0'
    drill.see("the worker is down", down in answers("/metrics").text)
    drill.see("it is killed", eventually(lambda: not alive(engine), 30))
    drill.see("another is there", eventually(lambda: answers("/ready").status_code == 200, 90))
    drill.see("it goes on with the job", eventually(lambda: told_of(client, job, "attempt 3"), 20))
    drill.see("the job tells why", told_of(client, job, "The worker hung"))
    drill.see("and answers", True, gaps(client))


def at_the_end(drill: Drill, process: "subprocess.Popen[str]", home: Path) -> None:
    before = children(process.pid)
    process.terminate()
    drill.see("it ends when it is told", process.wait(60) == 0, f"status {process.returncode}")
    drill.see("it leaves no process", eventually(lambda: not any(map(alive, before)), 20))
    queue = JobQueue(Database(f"sqlite:///{home / 'verandah.db'}"))
    drill.see("the job was given back", queue.counts()[JobStatus.QUEUED] == 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    drill = Drill()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home, log = folder / "home", folder / "log"
        with server(home, options.device, log) as (process, url), Client(url) as client:
            engines = children(process.pid)
            drill.see("it listens, with one child: the engine", len(engines) == 1)
            job = while_all_is_well(drill, client, url, folder)
            when_it_dies(drill, client, url, job, engines[0])
            when_it_hangs(drill, client, url, job, children(process.pid)[0])
            at_the_end(drill, process, home)
        if not drill.good or "Traceback" in log.read_text():
            print(log.read_text(), file=sys.stderr)
    return 0 if drill.good else 1


if __name__ == "__main__":
    sys.exit(main())
