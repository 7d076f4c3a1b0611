"""The client against a real HTTP server."""

import json
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from clients.python import ApiError, Client, ConnectionFailed, Hyperparameters, JobFailed
from server.errors import InvalidAdapter, Unavailable
from server.jobs.queue.evaluation import Evaluation, Sample
from server.jobs.queue.job import Job as QueuedJob
from server.jobs.queue.train_options import TrainOptions
from server.jobs.queue.training_metrics import TrainingMetrics
from server.tenancy.keys import Keys
from tests.api.fakes import FakeInspection, FakeInspections, found
from tests.api.running import Publish, Running, Serve, eventually
from tests.writing import WRITING

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "pirate.jsonl"
    line = json.dumps({"prompt": "a", "completion": "b"})
    path.write_text("\n".join([line] * 10))
    return path


def claim(server: Running) -> QueuedJob:
    job = server.services.jobs.claim("worker-1", 30)
    assert job is not None
    return job


def test_an_address_with_or_without_v1(server: Running) -> None:
    for url in (server.url, server.url + "/", server.url + "/v1"):
        with Client(url) as client:
            assert client.models() == ["base"]


def test_a_streamed_answer(client: Client, server: Running) -> None:
    assert "".join(client.chat("base", HELLO)) == server.loop.text


def test_a_whole_answer_with_options(client: Client, server: Running) -> None:
    assert client.answer("base", HELLO, max_tokens=1, temperature=0) == "H"
    assert server.loop.asked[0].params.temperature == 0


@pytest.mark.parametrize("text", [*WRITING, "a\u0085b\x0b\x0c\x1cc\r\n"])
def test_a_streamed_answer_keeps_every_character(
    client: Client, server: Running, text: str
) -> None:
    server.loop.text = text
    assert "".join(client.chat("base", [{"role": "user", "content": "Hi"}])) == text


def test_leaving_a_stream_cancels_it(client: Client, server: Running) -> None:
    server.loop.text, server.loop.pause_s = "x" * 200, 0.02
    pieces = client.chat("base", HELLO)
    assert next(piece for piece in pieces if piece) == "x"
    pieces.close()  # type: ignore[attr-defined]
    assert eventually(lambda: server.loop.handles[0].cancelled.is_set())


def test_a_refusal_has_the_servers_words(client: Client) -> None:
    for call in (
        lambda: client.answer("nobody", HELLO),
        lambda: list(client.chat("nobody", HELLO)),
        lambda: client.adapter("nobody"),
    ):
        with pytest.raises(ApiError, match="'nobody' does not exist") as caught:
            call()
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
        assert caught.value.param == "model"


def test_a_failure_in_a_stream(client: Client, server: Running) -> None:
    server.loop.failure, server.loop.failure_after = Unavailable("the engine failed"), 2
    server.loop.pause_s = 0.05
    with pytest.raises(ApiError, match="the engine failed") as caught:
        list(client.chat("base", HELLO))
    assert caught.value.code == "unavailable"


def test_an_answer_that_is_no_document() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="<html>"))
    with Client(transport=transport) as client, pytest.raises(ApiError, match="answered 502"):
        client.models()


def test_no_server() -> None:
    with Client("http://127.0.0.1:1") as client:
        assert not client.ready()
        with pytest.raises(ConnectionFailed, match="verandah serve"):
            client.models()
        with pytest.raises(ConnectionFailed):
            list(client.chat("base", HELLO))


def test_the_key_is_sent(serve: Serve) -> None:
    server = serve(keys=Keys("secret"))
    with Client(server.url, "secret") as client:
        assert client.models() == ["base"]
    with Client(server.url) as client, pytest.raises(ApiError) as caught:
        client.models()
    assert caught.value.status == 401


def test_every_option_of_a_job_can_be_given() -> None:
    assert set(Hyperparameters.__annotations__) == {field.name for field in fields(TrainOptions)}


def test_a_method_that_lacks_an_option_is_told(
    client: Client, server: Running, lines: Path
) -> None:
    uploaded = client.upload(lines)
    with pytest.raises(ApiError, match="only of randlora") as caught:
        client.train(uploaded.id, hyperparameters={"method": "lora", "sparsity": 3})
    assert (caught.value.status, caught.value.param) == (400, "sparsity")
    client.train(uploaded.id, hyperparameters={"method": "randlora", "sparsity": 3})
    assert claim(server).hyperparameters == TrainOptions(method="randlora", sparsity=3)


def test_training(client: Client, server: Running, lines: Path) -> None:
    uploaded = client.upload(lines)
    assert (uploaded.filename, uploaded.bytes) == ("pirate.jsonl", lines.stat().st_size)
    job = client.train(
        uploaded.id, suffix="pirate", seed=3, hyperparameters={"rank": 4, "n_epochs": 2}
    )
    assert job.status == "queued" and not job.ended
    held = claim(server)
    assert (held.suffix, held.seed, held.hyperparameters.rank) == ("pirate", 3, 4)

    def work() -> None:
        for step in range(130):
            server.services.jobs.append_event(held, "info", f"step {step}", TrainingMetrics(step))
        server.services.jobs.record_evaluation(
            held, Evaluation(2, True, 3.0).of(1, 2.0, 2.0), "info", "good"
        )
        server.services.jobs.add_samples(held, [Sample("q", "a", "b", "c")])
        server.services.jobs.finish(held, "pirate@1", 77)

    worker = threading.Thread(target=work)
    worker.start()
    followed = [event.data["step"] for event in client.follow(job.id) if event.type == "metrics"]
    worker.join()
    assert followed == list(range(130))
    told = client.events(job.id)
    assert [event.data["step"] for event in told if event.type == "metrics"] == followed
    done = client.wait(job.id, poll_s=0.01)
    assert (done.fine_tuned_model, done.trained_tokens) == ("pirate@1", 77)
    found = done.judgement
    assert found is not None and (found.verdict, found.adapter_loss) == ("better", 2.0)
    assert [(sample.prompt, sample.adapter) for sample in done.samples] == [("q", "c")]
    assert (job.judgement, job.samples) == (None, ())


def test_what_else_a_job_can_be_asked(
    client: Client, server: Running, lines: Path, publish: Publish
) -> None:
    publish("pirate")
    uploaded = client.upload(lines).id
    said = client.dry_run(uploaded, model="pirate", hyperparameters={"early_stopping": 2})
    assert said["valid"] and said["model"] == "pirate@1" and said["appraisal"]["seconds"] == 3
    job = client.train(uploaded, model="pirate", validation_file=uploaded, metadata={"team": "red"})
    client.train(uploaded)
    assert client.pause(job.id).status == "paused"
    assert [found.id for found in client.jobs(status="paused")] == [job.id]
    assert [found.id for found in client.jobs(metadata={"team": "red"})] == [job.id]
    assert client.resume(job.id).status == "queued"
    held = claim(server)
    for step in (4, 8):
        server.services.jobs.add_checkpoint(held, step, f"pirate@{step}", TrainingMetrics(step))
    server.services.jobs.add_results(held, uploaded)
    server.services.jobs.finish(held, "pirate@8", 1)
    found = [(checkpoint.step, checkpoint.model) for checkpoint in client.checkpoints(job.id)]
    assert found == [(4, "pirate@4"), (8, "pirate@8")]
    (results,) = client.job(job.id).result_files
    assert client.content(results) == lines.read_bytes()
    with pytest.raises(ApiError):
        client.content("file-none")


def test_a_job_that_fails(client: Client, server: Running, lines: Path) -> None:
    job = client.train(client.upload(lines).id)
    server.services.jobs.fail(claim(server), "diverged", "the loss is not finite")
    with pytest.raises(JobFailed, match="the loss is not finite"):
        client.wait(job.id)


def test_a_job_that_is_cancelled(client: Client, lines: Path) -> None:
    job = client.train(client.upload(lines).id)
    assert client.cancel(job.id).status == "cancelled"
    with pytest.raises(JobFailed, match="cancelled"):
        client.wait(job.id)


def test_adapters(client: Client, publish: Publish) -> None:
    for number in range(103):  # more than a page
        publish(f"user-{number:03}")
    publish("user-000")
    adapters = list(client.adapters())
    assert [adapter.id for adapter in adapters] == [f"user-{n:03}" for n in range(103)]
    first = adapters[0]
    assert (first.version, first.versions, first.method, first.rank) == (2, (1, 2), "vera", 4)
    assert first.residency == "stored" and first.bytes and first.error is None
    assert client.pin("user-000").pinned
    assert client.adapter("user-000@2").pinned
    assert not client.unpin("user-000").pinned
    client.delete("user-000@1")
    assert client.adapter("user-000").versions == (2,)


def test_an_analysis(client: Client, server: Running, publish: Publish) -> None:
    publish("pirate")
    publish("butler")
    held = FakeInspection()
    held.done = 1
    inspections = server.services.inspections
    assert isinstance(inspections, FakeInspections)
    inspections.held = held
    ending = threading.Timer(0.2, held.findings.set_result, [found(compared=True)])
    ending.start()
    told: list[tuple[int, int]] = []
    analysis = client.analysis(
        "pirate", "butler", on_progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 4)]
    assert (analysis.id, analysis.method, analysis.rank) == ("pirate@1", "vera", 4)
    last = analysis.layers[-1]
    assert (last.path, last.shape, last.norm) == ("model.layers.1.mlp.up_proj", (6, 5), 2.0)
    assert last.trained["d"].relative == 1.0 and last.trained["b"].moved is None
    assert analysis.comparison is not None and analysis.comparison.id == "butler@1"
    assert analysis.comparison.layers[-1].left.similarity == 0.75


def test_an_analysis_that_fails(client: Client, server: Running, publish: Publish) -> None:
    publish("pirate")
    inspections = server.services.inspections
    assert isinstance(inspections, FakeInspections)
    inspections.failure = InvalidAdapter("a foreign one")
    with pytest.raises(ApiError, match="a foreign one") as caught:
        client.analysis("pirate")
    assert caught.value.code == "invalid_adapter"
    inspections.failure, inspections.held = None, FakeInspection()
    inspections.held.done = 1
    failing = threading.Timer(
        0.2, inspections.held.findings.set_exception, [Unavailable("the server is stopping")]
    )
    failing.start()
    with pytest.raises(ApiError, match="the server is stopping"):
        client.analysis("pirate")


def test_an_analysis_without_an_end() -> None:
    text = 'data: {"object":"adapter.analysis.progress","done":1,"total":2}\n\n'
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=text))
    with Client(transport=transport) as client, pytest.raises(ConnectionFailed, match="stopped"):
        client.analysis("pirate")


def test_an_upload_may_expire(client: Client, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"a line")
    file = client.upload(path, expires_after_s=3600)
    stored = server.services.files.get("default", file.id)
    assert stored.expires_at == stored.created_at + 3600
    with pytest.raises(ApiError, match="not between 3600"):
        client.upload(path, expires_after_s=1)
