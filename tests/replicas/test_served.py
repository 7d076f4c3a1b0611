"""Two real engines of a tiny model behind one API, beside one in this process."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from adapters_store.manifest import AdapterRef
from benchmarks.support.stack import RandomAdapters
from server.app import create_app
from server.config import Settings
from server.metrics import Metrics
from server.replicas.replica import Replica
from server.wiring.building import open_records
from server.wiring.front import Front, running_front
from server.wiring.front_services import wire
from tests.api.running import eventually, hosting
from tests.cli.conftest import model_folder

__all__ = ["model_folder"]

pytestmark = pytest.mark.slow

LONG = 20_000  # tokens of an answer that takes far longer than to look whether it is still given
ASK = {"model": "base", "prompt": [5, 6, 7, 8], "temperature": 0, "ignore_eos": True}


@dataclass
class Both:
    """The same model and store behind two servers."""

    here: httpx.Client
    apart: httpx.Client
    front: Front  # of `apart`
    adapter: AdapterRef


@pytest.fixture(scope="module")
def patient_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, which may say as much as the memory for keys and values holds."""
    folder = tmp_path_factory.mktemp("patient") / "model"
    shutil.copytree(model_folder, folder)
    config = folder / "config.json"
    longer = json.loads(config.read_text()) | {"max_position_embeddings": LONG + 512}
    config.write_text(json.dumps(longer))
    generation = folder / "generation_config.json"
    ends = json.loads(generation.read_text()) | {"eos_token_id": [2, 299]}
    generation.write_text(json.dumps(ends))
    return folder


@pytest.fixture(scope="module")
def both(patient_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    home, threads = tmp_path_factory.mktemp("home"), torch.get_num_threads()
    settings = Settings(
        home=home, model=str(patient_model), kv_memory_mb=8, adapter_slots=8, threads=1
    )
    twice = settings.model_copy(update={"replicas": 2})
    metrics = [Metrics("base"), Metrics("base")]
    with (
        open_records(settings) as records,
        running_front(settings, records, metrics[0], lambda _: None) as here,
        running_front(twice, records, metrics[1], lambda _: None) as apart,
        hosting() as first,
        hosting() as second,
    ):
        first.app = create_app(wire(settings, records, here, metrics[0], None))
        second.app = create_app(wire(twice, records, apart, metrics[1], None))
        (adapter,) = RandomAdapters(here.base, rank=4).publish(records.store, 1)
        yield Both(first.http, second.http, apart, adapter)
    torch.set_num_threads(threads)


def completion(client: httpx.Client, **changes: object) -> dict[str, object]:
    response = client.post("/v1/completions", json=ASK | changes)
    assert response.status_code == 200, response.text
    document: dict[str, object] = response.json()
    return {"choices": document["choices"], "usage": document["usage"]}


@pytest.mark.parametrize("changes", [{}, {"logprobs": 3, "echo": True}, {"n": 2, "max_tokens": 40}])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_same_answers(both: Both, changes: dict[str, object], adapted: bool) -> None:
    model = str(both.adapter) if adapted else "base"
    here = completion(both.here, model=model, **changes)
    assert completion(both.apart, model=model, **changes) == here


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": []},
        {"prompt": [5] * 50_000},
        {"model": "nobody"},
        {"prompt": [10**6]},
        {"n": 999},
    ],
)
def test_the_same_errors(both: Both, changes: dict[str, object]) -> None:
    here, apart = (c.post("/v1/completions", json=ASK | changes) for c in (both.here, both.apart))
    assert here.status_code >= 400
    assert (apart.status_code, apart.json()) == (here.status_code, here.json())


def test_the_end_tokens_are_known_without_the_engines_files(both: Both) -> None:
    """The estimate of a job needs them; the outline of the base has the configuration's alone."""
    assert both.front.base.eos_token_ids == {2, 299}


def test_the_same_analysis_without_the_engines_weights(both: Both) -> None:
    assert {parameter.device.type for parameter in both.front.base.model.parameters()} == {"meta"}
    path = f"/v1/adapters/{both.adapter}/analysis"
    here, apart = both.here.get(path).json(), both.apart.get(path).json()
    assert here["layers"][0]["weight_norm"] > 0
    assert apart == here


def test_the_same_exports(both: Both) -> None:
    for form in ("peft", "merged"):
        path = f"/v1/adapters/{both.adapter}/export?format={form}"
        here, apart = both.here.get(path), both.apart.get(path)
        assert (apart.status_code, len(apart.content)) == (200, len(here.content))


def test_pins_and_residents(both: Both) -> None:
    path = f"/v1/adapters/{both.adapter}"
    assert both.apart.post(f"{path}/pin").status_code == 200
    assert eventually(lambda: both.apart.get(path).json()["pinned"])
    completion(both.apart, model=str(both.adapter))
    assert both.apart.get(path).json()["residency"] == "resident"


def test_memory_is_that_of_all_engines(both: Both) -> None:
    memory = both.front.engine.stats().memory
    assert len(memory.devices) == len(both.front.processes) == 2
    assert memory.weights % 2 == 0 and memory.weights > 0
    assert memory.kv > 0 and memory.adapters > 0
    assert (memory.total, memory.free) == (0, 0), "a CPU has no memory of its own"


def test_who_goes_away_is_not_answered_any_more(both: Both) -> None:
    body = ASK | {"max_tokens": LONG, "stream": True}
    with both.apart.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()  # kept: without it the client would go away now
        next(lines)
        assert eventually(lambda: both.front.engine.stats().running == 1)
    assert eventually(lambda: both.front.engine.stats().running == 0)


def test_a_killed_engine_is_told_and_replaced(both: Both) -> None:
    body = ASK | {"max_tokens": LONG, "stream": True}
    with both.apart.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        for process in both.front.processes:
            assert isinstance(process, Replica) and process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        rest = "".join(lines)
    assert "event: error" in rest and '"code":"unavailable"' in rest and "ended" in rest
    assert eventually(lambda: both.apart.get("/ready").status_code == 503)
    assert both.apart.post("/v1/completions", json=ASK).status_code == 503
    assert both.apart.get("/health").json()["status"] == "degraded"
    assert eventually(lambda: both.apart.get("/health").json()["status"] == "ok", 60)
    assert [each["restarts"] for each in both.apart.get("/health").json()["engines"]] == [1, 1]
    assert completion(both.apart) == completion(both.here)
