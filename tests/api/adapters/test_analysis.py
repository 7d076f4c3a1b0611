"""/v1/adapters/{id}/analysis over a made-up analysis; `tests/adapters` has the real one."""

import json
import threading
import time

import pytest

from server.errors import InvalidAdapter, QueueFull
from tests.api.fakes import FakeInspection, FakeInspections, found
from tests.api.running import Publish, Running


@pytest.fixture
def inspections(server: Running) -> FakeInspections:
    assert isinstance(server.services.inspections, FakeInspections)
    return server.services.inspections


def test_the_document(server: Running, publish: Publish, inspections: FakeInspections) -> None:
    ref = publish("pirate")
    document = server.http.get("/v1/adapters/pirate/analysis").json()
    assert inspections.started == [(ref, None)]
    assert (document["id"], document["object"]) == ("pirate@1", "adapter.analysis")
    assert (document["method"], document["rank"], document["comparison"]) == ("vera", 4, None)
    first = document["layers"][0]
    assert (first["layer"], first["module"], first["shape"]) == (0, "self_attn.q_proj", [6, 5])
    assert first["trained"]["d"] == {"rms": 0.2, "moved": 0.1, "relative": 1.0}
    assert first["trained"]["b"]["moved"] is None
    assert first["singular_values"] == [0.5, 0.25, 0.125, 0.0625]


def test_beside_another(server: Running, publish: Publish, inspections: FakeInspections) -> None:
    pirate = publish("pirate")
    publish("butler")
    butler = publish("butler")
    answer = server.http.get("/v1/adapters/pirate/analysis", params={"compare": "butler"})
    comparison = answer.json()["comparison"]
    assert inspections.started == [(pirate, butler)]
    assert (comparison["id"], comparison["method"], comparison["rank"]) == ("butler@2", "lora", 2)
    side = comparison["layers"][0]["left"]
    assert side == {"similarity": None, "directions": [4, 2], "chance": 0.25}


@pytest.mark.parametrize(
    ("path", "status", "code", "param"),
    [
        ("nobody/analysis", 404, "model_not_found", "model"),
        ("pirate@9/analysis", 404, "model_not_found", "model"),
        ("base/analysis", 400, "invalid_value", "adapter"),
        ("pirate/analysis?compare=nobody", 404, "model_not_found", "model"),
        ("pirate/analysis?compare=base", 400, "invalid_value", "compare"),
    ],
)
def test_what_cannot_be_analysed(
    server: Running, publish: Publish, path: str, status: int, code: str, param: str
) -> None:
    publish("pirate")
    answer = server.http.get(f"/v1/adapters/{path}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


def test_an_adapter_that_is_not_the_callers(server: Running, publish: Publish) -> None:
    publish("theirs", owner="somebody")
    assert server.http.get("/v1/adapters/theirs/analysis").status_code == 404


@pytest.mark.parametrize("query", ["", "?stream=true"])
@pytest.mark.parametrize(
    ("failure", "status"),
    [(InvalidAdapter("a foreign one"), 400), (QueueFull("16 wait", retry_after_s=5), 429)],
)
def test_a_failure_has_a_status(
    server: Running,
    publish: Publish,
    inspections: FakeInspections,
    query: str,
    failure: Exception,
    status: int,
) -> None:
    publish("pirate")
    inspections.failure = failure
    answer = server.http.get(f"/v1/adapters/pirate/analysis{query}")
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, str(failure))


def test_a_stream_tells_its_progress(
    server: Running, publish: Publish, inspections: FakeInspections
) -> None:
    publish("pirate")
    held = inspections.held = FakeInspection()
    held.done = 1

    def work() -> None:
        time.sleep(0.2)
        held.done = 3
        time.sleep(0.2)
        held.findings.set_result(found())

    worker = threading.Thread(target=work)
    worker.start()
    text = server.http.get("/v1/adapters/pirate/analysis?stream=true").text
    worker.join()
    events = [line.removeprefix("data: ") for line in text.splitlines() if line[:5] == "data:"]
    assert events[-1] == "[DONE]"
    *progress, document = map(json.loads, events[:-1])
    assert [(told["done"], told["total"]) for told in progress] == [(1, 4), (3, 4)]
    assert document["object"] == "adapter.analysis"
    assert document == server.http.get("/v1/adapters/pirate/analysis").json()


def test_a_failure_in_a_stream(
    server: Running, publish: Publish, inspections: FakeInspections
) -> None:
    publish("pirate")
    held = inspections.held = FakeInspection()
    held.done = 1
    failing = threading.Timer(0.2, held.findings.set_exception, [InvalidAdapter("broken")])
    failing.start()
    text = server.http.get("/v1/adapters/pirate/analysis?stream=true").text
    failing.join()
    assert 'event: error\ndata: {"error":{"message":"broken"' in text
    assert "[DONE]" not in text
