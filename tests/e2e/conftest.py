"""A real `verandah serve` in a process of its own, with its own worker, on the embedded model."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.api.running import eventually

ROOT = Path(__file__).parent.parent.parent
START_TIMEOUT_S = 90


@dataclass
class Served:
    """One run of the server over a home that outlives it."""

    home: Path
    process: subprocess.Popen[str] = field(init=False)
    url: str = field(init=False)
    sdk: OpenAI = field(init=False)

    def start(self, *more: str) -> None:
        command = [sys.executable, "-m", "server", "serve", "--port", "0", *more]
        options = {
            "VERANDAH_HOME": str(self.home),
            "VERANDAH_CHECKPOINT_EVERY_S": "1",
            "VERANDAH_LEASE_S": "3",
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | options,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"the server did not say where it serves: {line!r}"
        self.url = found[0]
        self.sdk = OpenAI(base_url=f"{self.url}/v1", api_key="any", timeout=120)
        assert eventually(lambda: self.get("/ready").status_code == 200, START_TIMEOUT_S)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def worker(self) -> psutil.Process:
        """The training worker's process."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        found: psutil.Process = next(child for child in children if "worker" in child.cmdline())
        return found

    def kill(self) -> None:
        """End server and worker at once, as a power cut would."""
        for process in [self.worker(), psutil.Process(self.process.pid)]:
            process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End in good order; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts `verandah serve` with more options over the one home."""
    started: list[Served] = []

    def make(*more: str) -> Served:
        served = Served(tmp_path / "home")
        started.append(served)
        served.start(*more)
        return served

    yield make
    for served in started:
        if served.process.poll() is None:
            served.stop()
        if "sdk" in vars(served):  # else it never said where it serves
            served.sdk.close()
        assert served.process.stdout is not None
        served.process.stdout.close()


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not so after {timeout_s} s"
        time.sleep(0.3)
