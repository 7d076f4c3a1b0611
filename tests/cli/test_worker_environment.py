"""What a worker's process is told beside its settings."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from server.cli.running import http_server
from server.config import Settings
from server.jobs.queue.job_queue import JobQueue


class Told:
    """Stands in for the supervisor, and starts nothing."""

    environment: Mapping[str, str] = {}

    def __init__(
        self, _command: Sequence[str], environment: Mapping[str, str], on_end: Callable[[int], None]
    ) -> None:
        Told.environment = environment

    def start(self) -> None: ...

    def stop(self) -> None: ...


def told(home: Path) -> Mapping[str, str]:
    with http_server._worker(Settings(home=home, device="cpu"), cast(JobQueue, None)):
        return Told.environment


def test_its_threads_sleep_soon_unless_somebody_chose_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "Supervisor", Told)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert told(tmp_path)["GOMP_SPINCOUNT"] == http_server._SPINS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert told(tmp_path)["GOMP_SPINCOUNT"] == "7"
