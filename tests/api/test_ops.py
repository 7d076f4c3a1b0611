"""Health, readiness and metrics."""

import re
import threading
import time

from prometheus_client.parser import text_string_to_metric_families

from server.db.session import Database
from server.engine.sequence import FinishReason
from server.errors import Unavailable
from server.jobs.queue.job import JobStatus
from server.jobs.queue.job_queue import JobQueue
from tests.api.fakes import resident_status
from tests.api.running import Publish, Running, Serve


def test_health(server: Running) -> None:
    server.loop.alive = False
    assert server.http.get("/health").json() == {"status": "ok"}


def test_ready(server: Running) -> None:
    answer = server.http.get("/ready")
    assert answer.status_code == 200
    assert answer.json()["checks"] == {"engine": True, "database": True}


def test_not_ready_without_an_engine(server: Running) -> None:
    server.loop.alive = False
    answer = server.http.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"engine": False, "database": True}


def test_metrics_have_vllms_names(server: Running, publish: Publish) -> None:
    ref = publish("pirate")
    server.residency.residents[ref] = resident_status(ref)
    server.services.metrics.finished("stop")
    text = server.http.get("/metrics").text
    # A name with a colon is legal, but this parser wants recording rules to be told apart.
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens",
        "generation_tokens",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "request_success",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "adapter_slots",
        "adapter_loads",
        "adapter_evictions",
        "training_tokens",
        "database_up",
    ):
        assert f"verandah:{name}" in families, name
    assert families["verandah:num_requests_running"].samples[0].value == 2
    assert families["verandah:kv_cache_usage_perc"].samples[0].value == 0.25
    resident = families["verandah:adapters_in_memory"].samples[0]
    assert (resident.labels["state"], resident.value) == ("resident", 1)


def test_requests_are_counted_by_status(server: Running) -> None:
    def counted() -> dict[str, float]:
        families = text_string_to_metric_families(server.http.get("/metrics").text)
        (family,) = (it for it in families if it.name == "verandah:http_requests")
        values = {it.labels["status"]: it.value for it in family.samples if "total" in it.name}
        return {status: value for status, value in values.items() if value}

    assert counted() == {}, "/metrics is no traffic"
    server.http.get("/v1/models")
    server.http.get("/v1/models/nobody")
    server.http.get("/v1/nothing")
    server.http.post("/v1/chat/completions", json={"model": "base"})
    server.http.delete("/v1/models")
    assert counted() == {"200": 1, "404": 2, "400": 1, "405": 1}


def test_series_of_known_labels_are_there_from_the_start(server: Running) -> None:
    text = server.http.get("/metrics").text
    for reason in FinishReason:
        assert f'request_success_total{{finished_reason="{reason}",model_name="base"}} 0.0' in text
    for refusal in ("rate_limit", "queue_full", "unavailable"):
        assert f'rejections_total{{model_name="base",reason="{refusal}"}} 0.0' in text


def test_the_process_is_told_as_other_programs_tell_theirs(server: Running) -> None:
    text = server.http.get("/metrics").text
    assert re.search(r"^process_start_time_seconds \S+$", text, re.MULTILINE)
    assert "process_resident_memory_bytes" in text


def test_no_label_names_an_adapter(server: Running, publish: Publish) -> None:
    for number in range(5):
        ref = publish(f"user-{number}")
        server.residency.residents[ref] = resident_status(ref)
    assert not re.search("user-", server.http.get("/metrics").text)


def test_not_ready_without_a_database(serve: Serve) -> None:
    class Unreachable(JobQueue):
        def counts(self) -> dict[JobStatus, int]:
            raise Unavailable("the database failed")

    jobs = Unreachable(Database.__new__(Database))
    http = serve(jobs=jobs).http
    answer = http.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"engine": True, "database": False}
    text = http.get("/metrics").text
    assert 'database_up{model_name="base"} 0.0' in text and "training_jobs" not in text


class Child:
    """`server.supervisor.Supervisor`, of a child that hangs."""

    alive, restarts, problem = False, 2, "the worker has made no progress for 7 s"


def test_a_worker_that_hangs_is_told(serve: Serve) -> None:
    server = serve(worker=Child())
    answer = server.http.get("/health")
    told = {"alive": False, "restarts": 2, "problem": Child.problem}
    assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "worker": told})
    assert 'training_worker_up{model_name="base"} 0.0' in server.http.get("/metrics").text


def test_an_engine_that_hangs_is_told(serve: Serve) -> None:
    answer = serve(engines=(Child(),)).http.get("/health").json()
    assert (answer["status"], answer["engines"][0]["problem"]) == ("degraded", Child.problem)


def test_a_process_that_hangs_itself_is_to_be_started_again(serve: Serve) -> None:
    answer = serve(problem=lambda: "a step has taken over 20 s").http.get("/health")
    assert answer.status_code == 503
    assert answer.json() == {"status": "failed", "problem": "a step has taken over 20 s"}


class Stuck(JobQueue):
    """A database that never answers."""

    def counts(self) -> dict[JobStatus, int]:
        never.wait(20)
        raise Unavailable("the test is over")


class StuckWorker:
    restarts = 0

    @property
    def alive(self) -> bool:
        return not self.problem

    @property
    def problem(self) -> str:
        never.wait(20)
        return "the test is over"


never = threading.Event()


def test_all_answer_within_a_second_whatever_hangs(serve: Serve) -> None:
    never.clear()
    server = serve(jobs=Stuck(Database.__new__(Database)), worker=StuckWorker())
    before = threading.active_count()
    try:
        for _ in range(3):
            took, answers = {}, {}
            for path in ("/health", "/ready", "/metrics"):
                began = time.monotonic()
                answers[path] = server.http.get(path)
                took[path] = time.monotonic() - began
            assert max(took.values()) < 2, f"a second, on a loaded machine: {took}"
            assert answers["/health"].json()["status"] == "degraded"
            assert answers["/ready"].json()["checks"] == {"engine": True, "database": False}
        assert threading.active_count() <= before + 4, "who asks again takes no other thread"
    finally:
        never.set()
