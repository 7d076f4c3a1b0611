"""Who trains, and where: a thread beside the engine, in this process or its own, or a process."""

import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
import torch

from clients.python import Client
from server.app import create_app
from server.config import BadOption, Settings
from server.db.session import Database
from server.jobs.queue.job import JobStatus
from server.jobs.queue.job_queue import JobQueue
from server.metrics import Metrics
from server.replicas.replica import Replica
from server.wiring import front, training
from server.wiring.building import open_records
from server.wiring.front import running_front
from server.wiring.front_services import wire
from server.wiring.process import worker_id
from server.wiring.training import trains_in_thread
from tests.api.running import eventually, hosting
from tests.cli.test_serve import Start, alive, children, start, told_of
from tests.training.job.test_worker import submit
from tests.training.workplace import Workplace, lines

__all__ = ["start"]

ENDLESS = {"n_epochs": 1000, "rank": 4}


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cuda", {}, True),
        ("cuda", {"worker_device": "cuda"}, True),
        ("cuda", {"worker_device": "cpu"}, False),
        ("cuda", {"worker_process": "yes"}, False),
        ("cuda", {"worker": False}, False),
        ("cpu", {}, False),
        ("cpu", {"worker_process": "no"}, True),
        ("cpu", {"worker_device": "cuda"}, False),
    ],
)
def test_a_worker_is_a_thread_where_it_shares_a_cuda_device(
    device: str, options: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "device_of", lambda _settings: device)
    assert trains_in_thread(Settings.model_validate(options)) is expected


def test_a_thread_on_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "device_of", lambda _settings: "cuda")
    with pytest.raises(BadOption, match="the engine runs on cuda and --worker-device is cpu"):
        trains_in_thread(Settings(worker_process="no", worker_device="cpu"))


def test_of_several_engines_the_first_trains() -> None:
    settings = Settings(replicas=2, worker_process="no", threads=1)
    told = [front._environment_of(settings, number)["VERANDAH_WORKER"] for number in range(2)]
    assert told == ["True", "False"]


def submitted(client: Client, folder: Path) -> str:
    file = folder / "lines.jsonl"
    file.write_bytes(lines(12))
    uploaded = client.upload(file).id
    return client.train(uploaded, hyperparameters=ENDLESS).id  # type: ignore[arg-type]


def test_a_thread_trains_while_the_engine_of_its_process_answers(
    model_folder: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    settings = Settings(
        home=tmp_path,
        model=str(model_folder),
        kv_memory_mb=8,
        adapter_slots=8,
        threads=1,
        worker_process="no",
    )
    metrics = Metrics("base")
    with (
        open_records(settings) as records,
        running_front(settings, records, metrics, lambda _: None) as running,
        hosting() as host,
    ):
        host.app = create_app(wire(settings, records, running, metrics, None))
        with Client(host.url) as client:
            job = submitted(client, tmp_path)
            assert eventually(lambda: told_of(client, job, "Step 0/"), 60)
            question = [{"role": "user", "content": "Hello"}]
            assert "".join(client.chat("base", question, max_tokens=8, ignore_eos=True))
        assert 'training_worker_up{model_name="base"} 1.0' in host.http.get("/metrics").text
        running.stop(10)
        assert running.worker is not None
        assert eventually(lambda: records.jobs.counts()[JobStatus.QUEUED] == 1, 20)
    assert not running.worker.alive
    torch.set_num_threads(threads)


def test_what_a_dead_engine_held_is_not_waited_for(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server knows at once that its worker is dead. The engine is one that counts."""
    monkeypatch.setattr(
        front, "command", lambda _: [sys.executable, "-m", "tests.replicas.drill", "0"]
    )
    submit(Workplace.at(tmp_path))
    settings = Settings(
        home=tmp_path, model=str(model_folder), engine_process="yes", worker_process="no"
    )
    with (
        open_records(settings) as records,
        running_front(settings, records, Metrics("base"), lambda _: None) as running,
    ):
        (engine,) = running.processes
        assert isinstance(engine, Replica) and engine.pid is not None
        assert records.jobs.claim(worker_id(engine.pid), 1000)
        assert records.jobs.claim("another", 1000) is None
        os.kill(engine.pid, signal.SIGKILL)
        assert eventually(lambda: records.jobs.claim("another", 1000) is not None, 20)


@pytest.mark.slow
def test_an_engine_that_trains_gives_its_jobs_back_when_its_server_is_killed(
    start: Start, tmp_path: Path
) -> None:
    served = start("--worker-process", "no", "--engine-process", "yes", VERANDAH_LEASE_S="1000")
    served.wait_until_it_listens()
    (engine,) = children(served.process.pid)
    with Client(served.url) as client:
        job = submitted(client, tmp_path)
        assert eventually(lambda: told_of(client, job, "Step 0/"), 60), served.log
        assert 'worker_up{model_name="base"} 1.0' in httpx.get(f"{served.url}/metrics").text
    served.process.kill()
    assert eventually(lambda: not alive(engine), 30)
    queue = JobQueue(Database(f"sqlite:///{tmp_path / 'home' / 'verandah.db'}"))
    assert queue.counts()[JobStatus.QUEUED] == 1, "the thread gives the job back"
