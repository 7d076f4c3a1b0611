"""`verandah serve` as its users run it: a process, with a tiny random model."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients.python import Client
from server.__main__ import main
from server.db.session import Database
from server.jobs.queue.job import JobStatus
from server.jobs.queue.job_queue import JobQueue
from tests.api.running import eventually
from tests.training.workplace import lines as training_lines

HELLO = [{"role": "user", "content": "Hello"}]
Start = Callable[..., "Served"]


class Served:
    """A server's process."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        self.url = ""

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_it_listens(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"serving at (http://\S+)\n", line)
        assert found, f"{line!r}\n{self.log}"
        self.url = found[1]


@pytest.fixture
def start(model_folder: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts `verandah serve` on a free port with a home of its own."""
    started: list[Served] = []

    def start(*options: str, **variables: str) -> Served:
        log = tmp_path / f"log-{len(started)}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve", "--port", "0", *options],
                env=environment
                | {
                    "OMP_NUM_THREADS": "1",
                    "VERANDAH_HOME": str(tmp_path / "home"),
                    "VERANDAH_MODEL": str(model_folder),
                    "VERANDAH_KV_MEMORY_MB": "8",
                    "VERANDAH_ADAPTER_SLOTS": "8",
                }
                | variables,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        started.append(Served(process, log))
        return started[-1]

    yield start
    for served in started:
        served.process.kill()
        served.process.communicate()


def children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    others = [
        Path(f"/proc/{pid}/task/{task}/children").read_text()
        for task in os.listdir(f"/proc/{pid}/task")
        if task != str(pid)
    ]
    return [int(child) for child in " ".join([listing, *others]).split()]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_server_drains_and_ends_its_worker(start: Start) -> None:
    served = start()
    served.wait_until_it_listens()
    (worker,) = children(served.process.pid)
    pieces: list[str] = []
    began = threading.Event()

    def listen() -> None:
        with Client(served.url) as client:
            for piece in client.chat("base", HELLO, max_tokens=300, ignore_eos=True, seed=1):
                pieces.append(piece)
                began.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert began.wait(10)
    served.process.terminate()
    listener.join(20)
    assert served.process.wait(30) == 0
    assert len(pieces) > 100, "the answer under way was not finished"
    assert not alive(worker)
    assert "stopping" in served.log
    assert "Traceback" not in served.log


def told_of(client: Client, job: str, what: str) -> bool:
    return any(what in event.message for event in client.events(job))


def test_a_killed_worker_is_replaced_and_a_killed_server_leaves_none(
    start: Start, tmp_path: Path
) -> None:
    """What the worker held is not waited for: the server knows at once that it is dead."""
    served = start(VERANDAH_LEASE_S="1000")
    served.wait_until_it_listens()
    (first,) = children(served.process.pid)
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(training_lines(12))
    with Client(served.url) as client:
        endless = {"n_epochs": 1000, "rank": 4}
        job = client.train(client.upload(lines).id, hyperparameters=endless).id  # type: ignore[arg-type]
        assert eventually(lambda: told_of(client, job, "Step 0/"), 60), served.log
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: children(served.process.pid) not in ([], [first]), 10)
        (second,) = children(served.process.pid)
        assert client.ready()
        assert eventually(lambda: told_of(client, job, "attempt 2"), 60), served.log
    served.process.kill()
    assert eventually(lambda: not alive(second), 30)
    queue = JobQueue(Database(f"sqlite:///{tmp_path / 'home' / 'verandah.db'}"))
    assert queue.counts()[JobStatus.QUEUED] == 1, "the worker gives the job back"


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_a_worker_takes_memory_for_torch_and_a_base_only_while_it_has_jobs(
    start: Start, tmp_path: Path
) -> None:
    served = start("--worker-idle-s", "0.5", "--worker-poll-s", "0.1")
    served.wait_until_it_listens()
    (worker,) = children(served.process.pid)
    assert not has_torch(worker)
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(training_lines(12))
    with Client(served.url) as client:
        short = {"n_epochs": 1, "rank": 4, "publish": "always"}
        job = client.train(client.upload(lines).id, hyperparameters=short)  # type: ignore[arg-type]
        assert eventually(lambda: has_torch(worker), 60), served.log
        assert client.wait(job.id).status == "succeeded"
        assert eventually(lambda: not has_torch(worker), 60), served.log
    assert children(served.process.pid) == [worker]
    assert "it starts again" not in served.log
    served.process.kill()
    assert eventually(lambda: not alive(worker), 30), "an idle worker ends with its server too"
    assert "Traceback" not in served.log


def test_no_worker_and_a_key(start: Start) -> None:
    served = start("--no-worker", VERANDAH_API_KEY="secret")
    served.wait_until_it_listens()
    assert children(served.process.pid) == []
    with Client(served.url, "secret") as client:
        assert client.models() == ["base"]
    assert served.log.startswith("verandah: starting a server of ")
    assert eventually(lambda: " GET /v1/models 200 " in served.log)
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(30) == 130
    assert "Traceback" not in served.log
    assert "secret" not in served.log


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """`serve` in this process: puts back what it changes of it."""
    monkeypatch.setenv("VERANDAH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VERANDAH_PORT", "0")
    names = (None, "server", "adapters_store")
    levels = [logging.getLogger(name).level for name in names]
    on_terminate = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, on_terminate)
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--model", "/no/such/folder"], 1, "is not there"),
        (["--pinned", "nobody"], 2, "--pinned nobody: the home has no such adapter"),
        (["--pinned", "pirate@"], 2, "--pinned pirate@: version"),
        (["--pinned", "team-a/nobody"], 2, "--pinned team-a/nobody: the home has no such"),
        (["--host", "0.0.0.0"], 2, "give --api-key or VERANDAH_API_KEY, or --insecure"),
        (["--host", "::"], 2, "the server has no key"),
        (["--host", "192.0.2.1"], 2, "the server has no key"),
        (["--api-key", ""], 2, "api-key"),
        (["--device", "cuda"], 2, "no CUDA device"),
        (["--database-url", "sqlite://"], 1, "database in memory"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    model_folder: Path,
    options: list[str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["serve", "--no-worker", "--kv-memory-mb=8", "--adapter-slots=8"]
    assert main([*arguments, f"--model={model_folder}", *options]) == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("verandah: ") and said in last


@pytest.mark.usefixtures("as_it_was")
def test_a_port_that_is_taken_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"verandah: cannot listen at 127.0.0.1:{port}: another program listens there: stop it, or "
        "choose another --port\n"
    )


@pytest.mark.usefixtures("as_it_was")
def test_an_address_of_another_machine_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "192.0.2.1", "--insecure"]) == 2
    said = "cannot listen at 192.0.2.1:0: it is not an address of this machine: choose another"
    assert said in capsys.readouterr().err
