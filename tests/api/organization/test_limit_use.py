"""What an owner uses of its limits, as the API tells it."""

import io
from typing import Any

import pytest

from server.api.organization import limit_use_endpoints
from server.jobs.queue.job_estimate import JobEstimate
from server.tenancy.keys import Keys
from server.tenancy.principal import SERVER_ADMIN
from tests.api.running import Publish, Running, Serve

ESTIMATE = JobEstimate(1, 1, 5, 5, 1, 1, 40, 500, 9, False, 10, 4096)
PATH = "/v1/organization/usage/limits"


def told(server: Running, **query: str) -> dict[str, tuple[int | None, int | None]]:
    document: dict[str, Any] = server.http.get(PATH, params=query).json()
    return {it["name"]: (it["limit"], it["used"]) for it in document["limits"]}


def test_an_owner_without_limits(server: Running) -> None:
    assert told(server) == {
        **dict.fromkeys(("requests_a_minute", "tokens_a_minute"), (None, 0)),
        "requests_at_once": (None, None),
        **dict.fromkeys(("adapters", "files", "stored_bytes", "running_jobs"), (None, 0)),
        **dict.fromkeys(("waiting_jobs", "training_tokens_a_day"), (None, 0)),
    }


def test_what_is_kept_and_what_jobs_will_make_count(server: Running, publish: Publish) -> None:
    services = server.services
    publish("pirate")
    size = sum(services.adapters.sizes("default").values())
    file = services.files.create("default", "x.jsonl", "fine-tune", io.BytesIO(b"12345"))
    for suffix in ("butler", "butler", "pirate"):
        services.jobs.create("default", "base", file.id, suffix=suffix, estimate=ESTIMATE)
    assert services.jobs.claim("worker", 60) is not None
    services.tenants.limits.change("default", {"adapters": 9, "training_tokens_a_day": 10_000})
    found = told(server)
    assert found["adapters"] == (9, 2)
    assert found["files"] == (None, 1)
    assert found["stored_bytes"] == (None, size + 5 + 3 * 4096)
    assert (found["running_jobs"], found["waiting_jobs"]) == ((None, 1), (None, 2))
    assert found["training_tokens_a_day"] == (10_000, 1_500)


def test_requests_and_tokens_of_the_last_minute(server: Running) -> None:
    services = server.services
    limits = {"requests_a_minute": 60, "tokens_a_minute": 600, "requests_at_once": 8}
    services.tenants.limits.change("default", limits)
    services.limits.refresh()
    body = {"model": "base", "prompt": "hello", "max_tokens": 3}
    for _ in range(5):
        assert server.http.post("/v1/completions", json=body).status_code == 200
    services.limits.tidy()
    found = told(server)
    assert found["requests_a_minute"][0] == 60 and 4 <= (found["requests_a_minute"][1] or 0) <= 6
    limit, used = found["tokens_a_minute"]
    assert limit == 600 and used is not None and 10 < used < 60
    assert found["requests_at_once"][0] == 8
    services.tenants.limits.change("default", dict.fromkeys(limits))
    services.limits.refresh()
    services.history.add(services.usage.lately(), services.engine.stats())
    assert told(server)["requests_a_minute"] == (None, 5)
    assert told(server)["tokens_a_minute"] == (None, 5 * (5 + 3))


def test_bytes_of_very_many_are_counted_only_for_a_limit(
    server: Running, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_use_endpoints, "MOST_MEASURED", 1)
    publish("pirate")
    publish("butler")
    assert told(server)["stored_bytes"] == (None, None)
    server.services.tenants.limits.change("default", {"stored_bytes": 10**6})
    limit, used = told(server)["stored_bytes"]
    assert limit == 10**6 and used == sum(server.services.adapters.sizes("default").values())


def test_the_admin_asks_of_any_owner_and_an_owner_of_itself(serve: Serve, server: Running) -> None:
    tenants = server.services.tenants
    for owner in ("team-a", "team-b"):
        tenants.owners.create(owner)
    _, key = tenants.keys.create("team-a", "k", by=SERVER_ADMIN, scopes=("usage.read",))
    locked = serve(keys=Keys("the key", tenants.keys))

    def status(value: str, owner: str | None) -> tuple[int, str]:
        query = {} if owner is None else {"project_id": owner}
        headers = {"authorization": f"Bearer {value}"}
        answer = locked.http.get(PATH, params=query, headers=headers)
        return answer.status_code, answer.json().get("project_id", "")

    assert status(key, None) == status(key, "team-a") == (200, "team-a")
    assert status(key, "team-b") == status(key, "team-z") == (404, "")
    assert status("the key", "team-b") == (200, "team-b")
    assert status("the key", "team-z") == (404, "")
