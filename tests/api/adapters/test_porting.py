"""The routes of imports and exports: files in, files out, nothing left."""

import io
import json
import socket
import zipfile

import httpx
import pytest

from adapters_store.store_errors import InvalidCheckpoint
from server.api import sse
from server.errors import QueueFull, UnsupportedModel
from server.tenancy.keys import Keys
from tests.api.conftest import MAX_FILE
from tests.api.fakes import FakePorting
from tests.api.running import Publish, Running, Serve, eventually

CONFIG = ("adapter_config.json", b'{"r": 2}')
WEIGHTS = ("adapter_model.safetensors", b"weights")


@pytest.fixture
def porting(server: Running) -> FakePorting:
    assert isinstance(server.services.porting, FakePorting)
    return server.services.porting


def send(
    server: Running, name: str = "pirate", weights: tuple[str, bytes] = WEIGHTS, **told: str
) -> httpx.Response:
    return server.http.post(
        "/v1/adapters/import",
        data={"name": name, **told},
        files={"config": CONFIG, "weights": weights},
    )


def test_an_import_answers_the_entry(server: Running, porting: FakePorting) -> None:
    answer = send(server)
    assert answer.status_code == 200
    entry = answer.json()
    assert (entry["id"], entry["method"], entry["version"]) == ("pirate@1", "lora", 1)
    assert entry == server.http.get("/v1/adapters/pirate@1").json()
    assert send(server).json()["id"] == "pirate@2"
    assert porting.received[0] == (CONFIG[1], WEIGHTS[1])
    assert porting.told[0] == {
        "file_name": "adapter_model.safetensors",
        "torch_era": "",
        "half_dtype": "",
        "base_dtype": "float32",
    }


def test_how_it_was_trained_is_passed_on(server: Running, porting: FakePorting) -> None:
    told = {"torch_era": "2.11", "half_dtype": "float16", "base_dtype": "bfloat16"}
    assert send(server, "pirate", WEIGHTS, **told).status_code == 200
    assert porting.told[0] == {"file_name": "adapter_model.safetensors"} | told


@pytest.mark.parametrize("missing", ["name", "config", "weights"])
def test_everything_is_needed(server: Running, missing: str) -> None:
    parts = {"config": CONFIG, "weights": WEIGHTS}
    answer = server.http.post(
        "/v1/adapters/import",
        data={} if missing == "name" else {"name": "x"},
        files={key: value for key, value in parts.items() if key != missing},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == missing


def test_a_refusal_names_the_tensor(server: Running, porting: FakePorting) -> None:
    porting.failure = InvalidCheckpoint("tensor 'x' is missing")
    answer = send(server)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_adapter"
    assert answer.json()["error"]["message"] == "tensor 'x' is missing"
    porting.failure = QueueFull("others are at it", retry_after_s=30)
    assert send(server).headers["retry-after"] == "30"


def test_an_import_is_as_large_as_a_file_may_be(server: Running, porting: FakePorting) -> None:
    large = ("adapter_model.safetensors", b"w" * (MAX_FILE - 1000))
    assert send(server, weights=large).status_code == 200
    assert len(porting.received[0][1]) == MAX_FILE - 1000
    answer = send(server, weights=("x.safetensors", b"w" * (MAX_FILE + 70_000)))
    assert answer.status_code == 413
    assert "--max-file-mb" in answer.json()["error"]["message"]


def test_a_key_is_needed(serve: Serve, publish: Publish) -> None:
    publish("pirate")
    server = serve(keys=Keys("secret"))
    with httpx.Client(base_url=server.url) as nobody:
        assert nobody.post("/v1/adapters/import").status_code == 401
        assert nobody.get("/v1/adapters/pirate/export").status_code == 401


@pytest.mark.parametrize("form", ["peft", "peft-lora", "merged"])
def test_an_export_is_a_zip(
    server: Running, publish: Publish, porting: FakePorting, form: str
) -> None:
    ref = publish("pirate")
    answer = server.http.get(f"/v1/adapters/pirate/export?format={form}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert f'filename="pirate-1-{form}.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == porting.files
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert porting.asked == [(ref, form)]
    assert eventually(lambda: porting.left() == [])


def test_an_export_that_nobody_reads_leaves_nothing(
    server: Running, publish: Publish, porting: FakePorting
) -> None:
    publish("pirate")
    porting.files = {"model.safetensors": b"w" * 50_000_000}
    with server.http.stream("GET", "/v1/adapters/pirate/export") as answer:
        next(answer.iter_bytes())
    assert eventually(lambda: porting.left() == [])


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/adapters/nobody/export", 404, "model_not_found"),
        ("/v1/adapters/base/export", 400, "invalid_value"),
        ("/v1/adapters/pirate@9/export", 404, "model_not_found"),
        ("/v1/adapters/pirate/export?format=gguf", 400, "invalid_value"),
    ],
)
def test_what_cannot_be_exported(
    server: Running, publish: Publish, path: str, status: int, code: str
) -> None:
    publish("pirate")
    answer = server.http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_base_whose_files_are_gone(
    server: Running, publish: Publish, porting: FakePorting
) -> None:
    publish("pirate")
    porting.failure = UnsupportedModel("the files are gone")
    answer = server.http.get("/v1/adapters/pirate/export?format=merged")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "unsupported_model")
    assert json.loads(answer.text)["error"]["message"] == "the files are gone"


def test_an_export_that_nobody_reads_is_removed_in_time(
    server: Running, publish: Publish, porting: FakePorting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "STALLED_S", 0.5)
    publish("pirate")
    porting.files = {"model.safetensors": b"w" * 30_000_000}
    address = server.http.base_url
    with socket.create_connection((address.host, address.port or 80)) as mute:
        mute.sendall(b"GET /v1/adapters/pirate/export HTTP/1.1\r\nhost: here\r\n\r\n")
        assert eventually(lambda: len(porting.left()) == 1)
        assert eventually(lambda: porting.left() == [])
