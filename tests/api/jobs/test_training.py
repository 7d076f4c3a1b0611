"""Files and fine-tuning jobs through the OpenAI SDK; the test plays the worker."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import openai
import pytest

from server.jobs.queue.job import Job
from server.jobs.queue.training_metrics import TrainingMetrics
from tests.api.running import Running, Serve
from tests.writing import WRITING

LINES = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
    for i in range(10)
]
JSONL = "\n".join(json.dumps(line) for line in LINES).encode()


def upload(server: Running, content: bytes = JSONL, name: str = "lines.jsonl") -> str:
    return server.sdk.files.create(file=(name, content), purpose="fine-tune").id


def claim(server: Running) -> Job:
    job = server.services.jobs.claim("worker-1", 30)
    assert job is not None
    return job


class TestFiles:
    def test_upload_and_read_back(self, server: Running) -> None:
        file = server.sdk.files.create(file=("a b.jsonl", JSONL), purpose="fine-tune")
        assert (file.filename, file.bytes, file.purpose) == ("a b.jsonl", len(JSONL), "fine-tune")
        assert file.status == "processed"
        assert server.sdk.files.retrieve(file.id).model_dump() == file.model_dump()
        assert server.sdk.files.content(file.id).content == JSONL
        assert server.sdk.files.wait_for_processing(file.id).id == file.id

    @pytest.mark.parametrize("name", [*WRITING, "家族.jsonl"])
    def test_a_name_comes_back_in_every_answer(self, server: Running, name: str) -> None:
        file = server.sdk.files.create(file=(name, JSONL), purpose="fine-tune")
        assert file.filename == server.sdk.files.retrieve(file.id).filename == name
        assert [it.filename for it in server.sdk.files.list()] == [name]
        answer = server.sdk.files.content(file.id).response
        told = f"attachment; filename*=utf-8''{quote(name)}"  # RFC 5987
        assert answer.headers["content-disposition"] == told

    def test_upload_from_a_path(self, server: Running, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_bytes(JSONL)
        assert server.sdk.files.create(file=path, purpose="fine-tune").filename == "mine.jsonl"

    def test_listing_pages_through_all(self, server: Running) -> None:
        made = [upload(server, name=f"{i}.jsonl") for i in range(5)]
        assert [file.id for file in server.sdk.files.list(limit=2)] == made[::-1]
        assert [file.id for file in server.sdk.files.list(order="asc")] == made
        assert list(server.sdk.files.list(purpose="batch")) == []

    def test_deleting(self, server: Running) -> None:
        file_id = upload(server)
        assert server.sdk.files.delete(file_id).deleted
        for call in (server.sdk.files.retrieve, server.sdk.files.content, server.sdk.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                call(file_id)
            assert caught.value.code == "not_found"

    def test_a_file_in_use_stays(self, server: Running) -> None:
        file_id = upload(server)
        server.sdk.fine_tuning.jobs.create(model="base", training_file=file_id)
        with pytest.raises(openai.ConflictError):
            server.sdk.files.delete(file_id)

    def test_only_for_training(self, server: Running) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            server.sdk.files.create(file=("a", b"x"), purpose="assistants")
        assert caught.value.param == "purpose"

    def test_without_a_file(self, server: Running) -> None:
        answer = server.http.post("/v1/files", data={"purpose": "fine-tune"})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "file"

    def test_a_form_that_is_none(self, server: Running) -> None:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = server.http.post("/v1/files", content=b"rubbish", headers=headers)
        assert answer.status_code == 400


class TestCreating:
    def test_a_job_waits(self, server: Running) -> None:
        file_id = upload(server)
        job = server.sdk.fine_tuning.jobs.create(
            model="base",
            training_file=file_id,
            suffix="pirate",
            seed=5,
            metadata={"who": "ann"},
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}},
            },
        )
        assert (job.status, job.model, job.training_file) == ("queued", "base", file_id)
        assert (job.seed, job.metadata, job.fine_tuned_model) == (5, {"who": "ann"}, None)
        assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, "auto")
        assert job.result_files == [] and job.error is None
        assert claim(server).suffix == "pirate"

    @pytest.mark.parametrize(
        ("alive", "said"),
        [
            (None, ["This server runs no training worker"]),
            (False, ["The training worker does not run at the moment"]),
            (True, []),
        ],
    )
    def test_a_job_that_no_worker_takes_says_so(
        self, serve: Serve, alive: bool | None, said: list[str]
    ) -> None:
        worker = None if alive is None else SimpleNamespace(alive=alive, restarts=0)
        server = serve(worker=worker)
        job = server.sdk.fine_tuning.jobs.create(model="base", training_file=upload(server))
        events = server.sdk.fine_tuning.jobs.list_events(job.id).data
        told = [event.message.split(".")[0] for event in events if "worker" in event.message]
        assert told == [*said, "Files validated; the job waits for a worker"]

    def test_an_adapters_options(self, server: Running) -> None:
        server.sdk.fine_tuning.jobs.create(
            model="base",
            training_file=upload(server),
            extra_body={
                "hyperparameters": {
                    "rank": 8,
                    "targets": ["q_proj"],
                    "learning_rate": 0.02,
                    "n_epochs": "auto",
                }
            },
        )
        options = claim(server).hyperparameters
        assert (options.rank, options.targets, options.learning_rate) == (8, ("q_proj",), 0.02)
        assert options.n_epochs is None

    def test_a_method_and_its_options(self, server: Running) -> None:
        asked = {"method": "randlora", "sparsity": "sqrt", "rank": 16, "n_epochs": "auto"}
        job = server.sdk.fine_tuning.jobs.create(
            model="base",
            training_file=upload(server),
            method={"type": "supervised", "supervised": {"hyperparameters": asked}},  # type: ignore[arg-type]
        )
        options = claim(server).hyperparameters
        assert (options.method, options.sparsity, options.rank) == ("randlora", "sqrt", 16)
        assert job.model_dump()["hyperparameters"]["sparsity"] == "sqrt"

    def test_an_option_of_another_method_is_refused_with_the_remedy(self, server: Running) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            server.sdk.fine_tuning.jobs.create(
                model="base",
                training_file=upload(server),
                extra_body={"hyperparameters": {"method": "lora", "sparsity": 3}},
            )
        error = caught.value
        assert (error.code, error.param, error.type) == (
            "invalid_value",
            "sparsity",
            "invalid_request_error",
        )
        assert "no option of method 'lora', only of randlora: leave it out" in error.message
        assert list(server.sdk.fine_tuning.jobs.list()) == []

    def test_every_bad_line_is_named_and_nothing_queued(self, server: Running) -> None:
        bad = JSONL + b'\n{"messages": []}\nrubbish\n'
        with pytest.raises(openai.BadRequestError) as caught:
            server.sdk.fine_tuning.jobs.create(model="base", training_file=upload(server, bad))
        error = caught.value
        assert (error.code, error.param) == ("invalid_training_file", "training_file")
        assert "line 11" in error.message and "line 12" in error.message
        assert isinstance(error.body, dict)
        assert [problem["line"] for problem in error.body["problems"]] == [11, 12]
        assert list(server.sdk.fine_tuning.jobs.list()) == []

    def test_a_bad_validation_file_is_named(self, server: Running) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            server.sdk.fine_tuning.jobs.create(
                model="base", training_file=upload(server), validation_file=upload(server, b"x")
            )
        assert caught.value.param == "validation_file"

    @pytest.mark.parametrize(
        ("fields", "status", "param"),
        [
            ({"training_file": "file-none"}, 400, "training_file"),
            ({"validation_file": "file-none"}, 400, "validation_file"),
            ({"model": "gpt-4o"}, 404, "model"),
            ({"suffix": "no/slashes"}, 400, "suffix"),
            ({"suffix": "base"}, 400, "suffix"),  # the base model would answer in its place
            ({"suffix": "BASE"}, 400, "suffix"),
            ({"suffix": "no/slashes", "verandah": {"dry_run": True}}, 400, "suffix"),
            ({"suffix": ""}, 400, "suffix"),
            ({"suffix": "a" * 65}, 400, "suffix"),
            ({"seed": -1}, 400, "seed"),
            ({"hyperparameters": {"rank": 5000}}, 400, "rank"),
            ({"hyperparameters": {"rank": 65}}, 400, "rank"),
            ({"hyperparameters": {"rnak": 5}}, 400, "rnak"),
            ({"hyperparameters": {"method": "dora"}}, 400, "method"),
            ({"verandah": {"rank": 65}}, 400, "rank"),
            ({"verandah": {"rnak": 5}}, 400, "rnak"),
            ({"verandah": {"packing": True}}, 400, "packing"),
            ({"verandah": {"dry_run": 1}}, 400, "dry_run"),
            ({"verandah": {"rank": 4}, "hyperparameters": {"rank": 8}}, 400, "rank"),
            ({"hyperparameters": {"d_initial": 0}}, 400, "d_initial"),
            ({"method": {"type": "dpo"}}, 400, "method.type"),
            ({"integrations": [{"type": "wandb"}]}, 400, "integrations"),
            ({"metadata": {"a": 1}}, 400, "metadata.a"),
            ({"what": 1}, 400, "what"),
        ],
    )
    def test_a_bad_field_is_named(
        self, server: Running, fields: dict[str, object], status: int, param: str
    ) -> None:
        body = {"model": "base", "training_file": upload(server)} | fields
        answer = server.http.post("/v1/fine_tuning/jobs", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        assert list(server.sdk.fine_tuning.jobs.list()) == []


class TestWatching:
    @pytest.fixture
    def job_id(self, server: Running) -> str:
        return server.sdk.fine_tuning.jobs.create(model="base", training_file=upload(server)).id

    def test_a_job_succeeds(self, server: Running, job_id: str) -> None:
        job = claim(server)
        jobs = server.services.jobs
        assert server.sdk.fine_tuning.jobs.retrieve(job_id).status == "running"
        jobs.append_event(job, "info", "Step 1/2", TrainingMetrics(1, train_loss=2.5))
        jobs.add_checkpoint(job, 2, "pirate@1", TrainingMetrics(2, train_loss=1.5))
        jobs.finish(job, "pirate@1", 1234)
        done = server.sdk.fine_tuning.jobs.retrieve(job_id)
        assert (done.status, done.fine_tuned_model, done.trained_tokens) == (
            "succeeded",
            "pirate@1",
            1234,
        )
        assert done.finished_at is not None
        checkpoint = server.sdk.fine_tuning.jobs.checkpoints.list(job_id).data[0]
        assert checkpoint.fine_tuned_model_checkpoint == "pirate@1"
        assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (2, 1.5)
        step = next(
            event
            for event in server.sdk.fine_tuning.jobs.list_events(job_id)
            if event.type == "metrics"
        )
        assert step.data == {"step": 1, "train_loss": 2.5}

    def test_a_job_fails(self, server: Running, job_id: str) -> None:
        server.services.jobs.fail(claim(server), "diverged", "the loss is not finite")
        failed = server.sdk.fine_tuning.jobs.retrieve(job_id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("diverged", "the loss is not finite")

    def test_events_page_from_the_newest(self, server: Running, job_id: str) -> None:
        job = claim(server)
        for step in range(7):
            server.services.jobs.append_event(job, "info", f"step {step}")
        told = [e.message for e in server.sdk.fine_tuning.jobs.list_events(job_id, limit=3)]
        assert told[:7] == [f"step {step}" for step in range(6, -1, -1)]

    def test_events_stream_as_they_happen(self, server: Running, job_id: str) -> None:
        job = claim(server)
        for step in range(120):  # more than a page
            server.services.jobs.append_event(job, "info", f"step {step}")

        def go_on() -> None:
            time.sleep(0.6)
            server.services.jobs.append_event(job, "info", "late")
            server.services.jobs.finish(job, "pirate@1", 1)

        worker = threading.Thread(target=go_on)
        worker.start()
        url = f"/v1/fine_tuning/jobs/{job_id}/events?stream=true"
        with server.http.stream("GET", url) as response:
            lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        worker.join()
        assert lines[-1] == "[DONE]"
        told = [json.loads(line)["message"] for line in lines[:-1]]
        steps = [f"step {step}" for step in range(120)]
        assert [message for message in told if message.startswith("step ")] == steps
        assert told.index("late") > told.index("step 119")

    def test_cancelling(self, server: Running, job_id: str) -> None:
        assert server.sdk.fine_tuning.jobs.cancel(job_id).status == "cancelled"
        with pytest.raises(openai.ConflictError):
            server.sdk.fine_tuning.jobs.cancel(job_id)

    def test_listing_pages_through_all(self, server: Running, job_id: str) -> None:
        file_id = server.sdk.fine_tuning.jobs.retrieve(job_id).training_file
        more = [
            server.sdk.fine_tuning.jobs.create(model="base", training_file=file_id).id
            for _ in range(3)
        ]
        ids = [job.id for job in server.sdk.fine_tuning.jobs.list(limit=2)]
        assert ids == [*more[::-1], job_id]

    def test_an_unknown_job(self, server: Running) -> None:
        jobs = server.sdk.fine_tuning.jobs
        calls = (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list)
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                call("ftjob-none")
        answer = server.http.get("/v1/fine_tuning/jobs/ftjob-none/events?stream=true")
        assert answer.status_code == 404

    def test_somebody_elses_are_unknown(self, server: Running) -> None:
        with open(__file__, "rb") as source:
            file = server.services.files.create("somebody-else", "x", "fine-tune", source)
        job = server.services.jobs.create("somebody-else", "base", file.id)
        with pytest.raises(openai.NotFoundError):
            server.sdk.files.retrieve(file.id)
        with pytest.raises(openai.NotFoundError):
            server.sdk.fine_tuning.jobs.retrieve(job.id)
        assert list(server.sdk.files.list()) == []


class TestMetrics:
    def test_a_curve_and_pages_of_one_type(self, server: Running) -> None:
        server.sdk.fine_tuning.jobs.create(model="base", training_file=upload(server))
        job = claim(server)
        for step in range(1, 41):
            figures = TrainingMetrics(step, train_loss=1 / step)
            server.services.jobs.append_event(job, "info", f"Step {step}", figures)
        path = f"/v1/fine_tuning/jobs/{job.id}"
        whole = server.http.get(f"{path}/metrics").json()
        assert [point["step"] for point in whole.pop("data")] == [*range(1, 41)]
        assert whole == {
            "object": "fine_tuning.job.metrics",
            "fine_tuning_job_id": job.id,
            "reported": 40,
        }
        thinned = server.http.get(f"{path}/metrics?points=10").json()
        steps = [point["step"] for point in thinned["data"]]
        assert (steps[0], steps[-1], len(steps), thinned["reported"]) == (1, 40, 10, 40)
        metrics = server.http.get(f"{path}/events?type=metrics&limit=100").json()["data"]
        assert {event["type"] for event in metrics} == {"metrics"}
        assert len(metrics) == 40

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("metrics?points=9", "points"),
            ("metrics?points=5001", "points"),
            ("events?type=words", "type"),
            ("events?type=metrics&stream=true", "type"),
        ],
    )
    def test_what_cannot_be_is_refused(self, server: Running, query: str, param: str) -> None:
        job = server.sdk.fine_tuning.jobs.create(model="base", training_file=upload(server))
        answer = server.http.get(f"/v1/fine_tuning/jobs/{job.id}/{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
