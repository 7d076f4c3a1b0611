"""Health, readiness and metrics."""

import re

from prometheus_client.parser import text_string_to_metric_families

from server.db.session import Database
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
    ):
        assert f"verandah:{name}" in families, name
    assert families["verandah:num_requests_running"].samples[0].value == 2
    assert families["verandah:kv_cache_usage_perc"].samples[0].value == 0.25
    resident = families["verandah:adapters_in_memory"].samples[0]
    assert (resident.labels["state"], resident.value) == ("resident", 1)


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
    answer = serve(jobs=jobs).http.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"engine": True, "database": False}
