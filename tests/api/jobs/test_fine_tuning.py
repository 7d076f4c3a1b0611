"""The rest of the fine-tuning interface through the OpenAI SDK; the test plays the worker."""

import io
import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import openai
import pytest
import torch
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from adapters_store.store import AdapterStore
from server.jobs.files.file_store import RESULTS
from server.jobs.queue.evaluation import Evaluation, Sample
from server.jobs.queue.training_metrics import TrainingMetrics
from tests.api.jobs.test_training import JSONL, LINES, claim, upload
from tests.api.running import Publish, Running, Serve
from tests.small_adapters import small_manifest


def create(server: Running, **more: object) -> FineTuningJob:
    fields = {"model": "base", "training_file": upload(server)} | more
    return server.sdk.fine_tuning.jobs.create(**fields)  # type: ignore[arg-type]


def test_a_job_is_what_the_sdk_says_it_is(server: Running) -> None:
    """Parsed strictly, which the SDK itself is not, in each state."""
    jobs, path = server.services.jobs, "/v1/fine_tuning/jobs"
    job_id = create(server, suffix="pirate", metadata={"a": "b"}).id

    def now() -> FineTuningJob:
        answer = server.http.get(f"{path}/{job_id}")
        return FineTuningJob.model_validate(answer.json(), strict=True)

    waiting = now()
    assert (waiting.status, waiting.result_files, waiting.error) == ("queued", [], None)
    assert (waiting.hyperparameters.n_epochs, waiting.estimated_finish) == ("auto", None)
    empty = waiting.model_dump()["verandah"]
    assert (empty["judgement"], empty["samples"]) == (None, [])
    assert waiting.method is not None and waiting.method.type == "supervised"
    job = claim(server)
    plan = {"n_epochs": 6, "batch_size": 4, "learning_rate_multiplier": 1.0}
    jobs.record_plan(job, plan | {"learning_rate": 0.02, "rank": 64, "targets": ["q_proj"]})
    jobs.heartbeat(job, step=3, estimated_finish=5, trained_tokens=7)
    running = now()
    assert (running.status, running.estimated_finish) == ("running", 5)
    document = running.model_dump()
    for told in (document["hyperparameters"], document["method"]["supervised"]["hyperparameters"]):
        assert plan.items() <= told.items()
    ours = document["verandah"]
    assert (ours["learning_rate"], ours["rank"], ours["targets"]) == (0.02, 64, ["q_proj"])
    results = server.services.files.create(job.owner, "m.csv", RESULTS, io.BytesIO(b"step\n1\n"))
    jobs.add_results(job, results.id)
    jobs.add_checkpoint(job, 3, "pirate@1", TrainingMetrics(3, train_loss=1.0, valid_loss=2.0))
    jobs.append_event(job, "info", "Step 3", TrainingMetrics(3))
    before = Evaluation(2, True, base_loss=3.0)
    jobs.record_evaluation(job, before, "info", "To be judged")
    jobs.record_evaluation(job, before.of(3, 2.0, float("inf")), "warn", "Judged")
    jobs.record_evaluation(job, before.of(3, 2.0, float("inf")), "warn", "Judged")
    sample = Sample("q", "file", "base", "adapter")
    jobs.add_samples(job, [sample])
    jobs.add_samples(job, [sample, sample], "no room")
    jobs.finish(job, "pirate@1", 9)
    done = now()
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "pirate@1", 9)
    ours = done.model_dump()["verandah"]
    assert ours["samples"] == [
        {"prompt": "q", "expected": "file", "base": "base", "adapter": "adapter"}
    ]
    assert ours["judgement"] == {
        "lines": 2,
        "held_out": True,
        "base_loss": 3.0,
        "start_loss": None,
        "adapter_loss": 2.0,
        "last_loss": None,
        "step": 3,
        "verdict": "diverged",
    }
    told = [event.message for event in server.sdk.fine_tuning.jobs.list_events(job_id, limit=100)]
    counts = [told.count(word) for word in ("To be judged", "Judged", "no room")]
    assert (counts, told.count(sample.sentence())) == ([1, 1, 0], 1)
    assert server.sdk.files.content(done.result_files[0]).content == b"step\n1\n"
    assert server.sdk.files.retrieve(done.result_files[0]).purpose == "fine-tune-results"
    for raw in server.http.get(f"{path}/{job_id}/events").json()["data"]:
        FineTuningJobEvent.model_validate(raw, strict=True)
    for raw in server.http.get(f"{path}/{job_id}/checkpoints").json()["data"]:
        FineTuningJobCheckpoint.model_validate(raw, strict=True)
    job_id = create(server).id
    jobs.fail(claim(server), "diverged", "not finite", None)
    failed = now().error
    assert failed is not None and (failed.code, failed.param) == ("diverged", None)


def test_options_of_ours_stand_in_an_object_of_their_own(server: Running) -> None:
    ours = {
        "method": "randlora",
        "rank": 16,
        "targets": ["q_proj"],
        "learning_rate": 0.001,
        "schedule": "linear",
        "early_stopping": 3,
        "checkpoints": 1,
        "dropout": 0.1,
        "publish": "always",
        "packing": False,
    }
    job = create(
        server,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        extra_body={"verandah": ours},
    )
    options = claim(server).hyperparameters
    assert (options.method, options.rank, options.n_epochs) == ("randlora", 16, 3)
    assert (options.early_stopping, options.schedule, options.dropout) == (3, "linear", 0.1)
    told = job.model_dump()["verandah"]
    assert {key: told[key] for key in ours if key != "packing"} == {
        key: value for key, value in ours.items() if key != "packing"
    }
    assert "n_epochs" not in told and job.hyperparameters.n_epochs == 3


def test_pausing_and_resuming(server: Running) -> None:
    jobs = server.sdk.fine_tuning.jobs
    job_id = create(server).id
    assert jobs.pause(job_id).status == "paused"  # type: ignore[comparison-overlap]
    assert server.services.jobs.claim("w", 30) is None
    assert jobs.resume(job_id).status == "queued"
    job = claim(server)
    assert jobs.pause(job_id).status == "running"
    server.services.jobs.park(job)
    assert [job.id for job in jobs.list(extra_query={"status": "paused"})] == [job_id]
    assert jobs.cancel(job_id).status == "cancelled"
    for call in (jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError):
            call(job_id)
        with pytest.raises(openai.NotFoundError):
            call("ftjob-none")


def test_jobs_are_listed_by_metadata(server: Running) -> None:
    file_id = upload(server)
    pairs: list[dict[str, str]] = [{"team": "red"}, {"team": "red", "é": ""}, {"team": "blue"}, {}]
    ids = [create(server, training_file=file_id, metadata=pair).id for pair in pairs]
    jobs = server.sdk.fine_tuning.jobs
    assert [job.id for job in jobs.list(metadata={"team": "red"}, limit=1)] == [ids[1], ids[0]]
    assert [job.id for job in jobs.list(metadata={"team": "red", "é": ""})] == [ids[1]]
    assert [job.id for job in jobs.list(metadata={})] == ids[::-1]
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [ids[3]]
    for query in ({"metadata": "x"}, {"metadata.team": "red"}):
        with pytest.raises(openai.BadRequestError) as caught:
            jobs.list(extra_query=query)
        assert caught.value.param == "metadata"


class TestGoingOn:
    def test_from_an_adapter(self, server: Running, publish: Publish) -> None:
        publish("pirate")
        publish("pirate")
        job = create(server, model="pirate", extra_body={"verandah": {"rank": 4}})
        assert job.model == "pirate@2"
        options = claim(server).hyperparameters
        assert (options.method, options.rank) == ("vera", 4)
        assert create(server, model="pirate@1").model == "pirate@1"

    @pytest.mark.parametrize(
        ("model", "ours", "status", "message"),
        [
            (
                "pirate",
                {"method": "lora"},
                400,
                "'lora' contradicts pirate@1, which has vera",
            ),
            ("pirate@1", {"rank": 8}, 400, "rank=8 contradicts pirate@1, which has 4"),
            ("pirate@1", {"sparsity": 3}, 400, "pirate@1, which is of method 'vera'"),
            ("pirate@2", {}, 404, "'pirate@2' does not exist"),
            ("parrot", {}, 404, "'parrot' does not exist"),
        ],
    )
    def test_what_contradicts_it(
        self,
        server: Running,
        publish: Publish,
        model: str,
        ours: dict[str, object],
        status: int,
        message: str,
    ) -> None:
        publish("pirate")
        with pytest.raises(openai.APIStatusError) as caught:
            create(server, model=model, extra_body={"verandah": ours})
        assert caught.value.status_code == status
        assert message in str(caught.value)
        assert list(server.sdk.fine_tuning.jobs.list()) == []


class TestCheckpoints:
    @pytest.fixture
    def published(self, server: Running, store: AdapterStore) -> Callable[..., str]:
        def published(job: str, *, latest: bool) -> str:
            manifest = small_manifest(provenance={"job": job})
            vectors = {"q.d": torch.ones(4)}
            return str(store.publish("default", "poet", manifest, vectors, latest=latest))

        return published

    def test_they_are_models_and_go_with_their_job(
        self, server: Running, published: Callable[..., str]
    ) -> None:
        early = published("job-1", latest=False)
        with pytest.raises(openai.NotFoundError):
            server.sdk.models.retrieve("poet")
        assert server.sdk.models.retrieve(early).id == "poet@1"
        assert [model.id for model in server.sdk.models.list()] == ["base"]
        published("job-1", latest=True)
        published("job-2", latest=False)
        ask = server.sdk.chat.completions.create
        messages = [{"role": "user", "content": "Hi"}]
        said = [ask(model=m, messages=messages).model for m in ("poet", early)]  # type: ignore
        assert said == ["poet@2", "poet@1"]
        entry = server.http.get("/v1/adapters/poet").json()
        assert (entry["versions"], entry["checkpoints"]) == ([2], [1, 3])
        server.sdk.models.delete("poet@2")
        assert server.services.adapters.versions("default", "poet") == [3]
        server.sdk.models.delete("poet")
        assert server.services.adapters.versions("default", "poet") == []
        assert server.sdk.models.list().data[0].id == "base"


class TestChecks:
    def test_a_bad_file_is_reported_whole(self, server: Running) -> None:
        content = b"nonsense\n" * 60
        with pytest.raises(openai.BadRequestError) as caught:
            create(server, training_file=upload(server, content))
        assert caught.value.code == "invalid_training_file"
        body = caught.value.body
        assert isinstance(body, dict)
        assert [problem["line"] for problem in body["problems"]] == list(range(1, 61))

    def test_what_looks_odd_is_told_and_the_job_queued(self, serve: Serve) -> None:
        server = serve(worker=SimpleNamespace(alive=True, restarts=0))
        content = b"\xef\xbb\xbf" + JSONL + b"\n" + json.dumps(LINES[3]).encode()
        job = create(server, training_file=upload(server, content))
        appraisal = job.model_dump()["verandah"]["appraisal"]
        assert appraisal["warnings"] == [
            "the training file begins with a byte order mark, which is ignored",
            "the training file has 11 examples; 50 to 100 usually teach more",
            "the training file repeats 1 line: line 11",
        ]
        events = list(server.sdk.fine_tuning.jobs.list_events(job.id))[::-1]
        assert [e.message for e in events if e.level == "warn"] == appraisal["warnings"]
        assert any("an adapter of 4 KiB" in event.message for event in events)

    def test_a_dry_run_queues_nothing(self, server: Running) -> None:
        extra = {"verandah": {"dry_run": True, "n_epochs": 5}}
        good = create(server, extra_body=extra).model_dump()
        assert (good["object"], good["valid"], good["problems"]) == (
            "fine_tuning.job.dry_run",
            True,
            [],
        )
        assert (good["appraisal"]["n_epochs"], good["appraisal"]["adapter_bytes"]) == (5, 4096)
        too_long = JSONL.replace(b"q3", b"TOO LONG")
        long_line = b'{"prompt": "x", "completion": "TOO LONG"}\n'
        for content, expected in (
            (b"x\n" * 3, [("training_file", line) for line in (1, 2, 3)]),
            (JSONL[:50], [("training_file", 1)]),
            (b"\n".join(JSONL.splitlines()[:9]), [("training_file", None)]),
            (long_line, [("training_file", None)]),
            (b"x\n" + too_long, [("training_file", 1), ("training_file", 5)]),
            (long_line * 10, [("training_file", line) for line in range(1, 11)]),
        ):
            bad = create(server, training_file=upload(server, content), extra_body=extra)
            found = bad.model_dump()
            assert (found["valid"], found["appraisal"]) == (False, None)
            assert [(p["param"], p["line"]) for p in found["problems"]] == expected
        broken = upload(server, b"x\n")
        both = create(server, training_file=broken, validation_file=broken, extra_body=extra)
        named = [problem["param"] for problem in both.model_dump()["problems"]]
        assert named == ["training_file", "validation_file"]
        assert list(server.sdk.fine_tuning.jobs.list()) == []


def each(field: str, *values: object) -> list[dict[str, object]]:
    return [{field: value} for value in values]


BAD_BODIES: list[dict[str, object]] = [
    *each("suffix", "", "a" * 65, "no/slashes", "base", "BASE", "a.", "-a", ".a"),
    *each("suffix", "é", "pirate@1", "a b", "\0", 7),
    *each("metadata", {"a" * 65: "b"}, {"a": "b" * 513}, {"a": 1}, {"\n": ""}, {"a": "\0"}),
    *each("metadata", {str(n): "" for n in range(17)}),
    *each("seed", -1, 2**63, 1.5, "x"),
    *each("model", "gpt-4o", "pirate@1", "", "no/slashes"),
    *each("training_file", "file-none", "RESULTS", "SHORT", "BROKEN", "LONG", ""),
    *each("validation_file", "file-none", "RESULTS", "BROKEN", "EMPTY", "LONG"),
    {"training_file": "BROKEN", "validation_file": "BROKEN"},
    {"training_file": "SHORT", "validation_file": "EMPTY"},
    {"training_file": "RESULTS", "validation_file": "file-none"},
    *each("hyperparameters", {"rank": 65}, {"rnak": 5}, {"method": "dora"}, {"n_epochs": 0}),
    *each("verandah", {"rank": 65}, {"rnak": 5}, {"packing": True}, {"targets": []}),
    *each("verandah", {"learning_rate": 0.1, "learning_rate_multiplier": 2}),
    {"verandah": {"rank": 4}, "hyperparameters": {"rank": 8}},
    {"verandah": {"seed": 1}, "seed": 2},
    *each("method", {"type": "dpo"}),
    *each("integrations", [{"type": "wandb"}]),
    *each("what", 1),
]


@pytest.mark.parametrize("fields", BAD_BODIES, ids=lambda fields: json.dumps(fields)[:40])
def test_a_dry_run_says_what_the_job_would(server: Running, fields: dict[str, object]) -> None:
    stored = server.services.files.create("default", "m.csv", RESULTS, io.BytesIO(b"step\n"))
    named = {"RESULTS": stored.id}
    for name, content in (
        ("SHORT", b"\n".join(JSONL.splitlines()[:9])),
        ("BROKEN", b"x\n" + JSONL),
        ("EMPTY", b"\n"),
        ("LONG", JSONL.replace(b"q3", b"TOO LONG")),
    ):
        named[name] = upload(server, content)
    body = {"model": "base", "training_file": upload(server)} | fields
    body |= {key: named.get(str(body.get(key)), body[key]) for key in body if "_file" in key}
    job = server.http.post("/v1/fine_tuning/jobs", json=body)
    ours = body.get("verandah") or {}
    assert isinstance(ours, dict)
    dry = server.http.post(
        "/v1/fine_tuning/jobs", json=body | {"verandah": {**ours, "dry_run": True}}
    )
    assert job.status_code in (400, 404), job.text
    error = job.json()["error"]
    if error["code"] == "invalid_training_file":
        assert (dry.status_code, dry.json()["valid"]) == (200, False)
        assert dry.json()["problems"] == error["problems"] != []
    else:
        assert (dry.status_code, dry.json()) == (job.status_code, job.json())
    assert list(server.sdk.fine_tuning.jobs.list()) == []


class TestStream:
    def test_it_goes_on_after_the_last_event_that_was_seen(self, server: Running) -> None:
        job_id = create(server).id
        job = claim(server)
        url = f"/v1/fine_tuning/jobs/{job_id}/events?stream=true"
        with server.http.stream("GET", url) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.iter_lines()
            seen = [next(lines) for _ in range(2)]
        told = json.loads(seen[1].removeprefix("data: "))
        assert seen[0] == f"id: {told['id']}"
        assert told["message"] == f"Created fine-tuning job: {job_id}"

        def go_on() -> None:
            time.sleep(0.3)
            server.services.jobs.finish(job, "pirate@1", 1)

        worker = threading.Thread(target=go_on)
        worker.start()
        headers = {"last-event-id": told["id"]}
        with server.http.stream("GET", url, headers=headers) as response:
            rest = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        worker.join()
        messages = [json.loads(line)["message"] for line in rest[:-1]]
        everything = list(server.sdk.fine_tuning.jobs.list_events(job_id))[::-1]
        assert messages == [event.message for event in everything[1:]]
        assert rest[-1] == "[DONE]"
        unknown = server.http.get(url, headers={"last-event-id": "ftevent-none"})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "after")

    def test_it_beats_while_nothing_happens(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("server.api.jobs.event_hub._COMMENT_S", 0.05)
        monkeypatch.setattr("server.api.jobs.event_hub._POLL_S", 0.01)
        server = serve()
        url = f"/v1/fine_tuning/jobs/{create(server).id}/events?stream=true"
        with server.http.stream("GET", url) as response:
            assert any(line.startswith(": still running") for line in response.iter_lines())


def test_a_dry_run_in_the_query_queues_nothing(server: Running) -> None:
    body = {"model": "base", "training_file": upload(server)}
    answer = server.http.post("/v1/fine_tuning/jobs?dry_run=true", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dry_run")
    assert not server.sdk.fine_tuning.jobs.list().data
