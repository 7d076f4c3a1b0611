"""What the server's admin sees of all: totals, the largest and busiest adapters, a search."""

import asyncio
import time
from typing import Any

import pytest

from adapters_store.store import AdapterStore
from server.api.adapters.adapter_census import AdapterCensus
from server.db.usage_rows import HOUR_S, UsageKey
from server.tenancy.usage.usage_book import DAY_S
from tests.api.running import Publish, Running, eventually

HOUR = int(time.time()) // HOUR_S * HOUR_S
ADAPTERS = "/v1/organization/adapters"


def use(server: Running, owner: str, model: str, requests: int, at: int = HOUR) -> None:
    counts = {"requests": requests, "prompt": 10 * requests, "completion": requests}
    book = server.services.tenants.usage
    writer = f"{owner} {model} {requests} {at}"
    book.add(writer, 1, {(at, UsageKey(owner, "key", "", model)): counts})


def data(server: Running, path: str) -> list[dict[str, Any]]:
    answer = server.http.get(path)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def test_totals_are_of_all_models_the_busiest_first(server: Running) -> None:
    use(server, "a", "base", 2)
    use(server, "a", "pirate", 3)
    use(server, "b", "base", 9)
    use(server, "c", "base", 50, at=HOUR - 2 * DAY_S)
    path = f"/v1/organization/usage/totals?start_time={HOUR - DAY_S}"
    totals = data(server, path)
    assert [(it["project_id"], it["num_model_requests"]) for it in totals] == [("b", 9), ("a", 5)]
    assert totals[1]["input_tokens"] == 50
    first = server.http.get(f"{path}&limit=1").json()
    assert (first["has_more"], first["next_page"]) == (True, "1")
    assert data(server, f"{path}&limit=1&page=1")[0]["project_id"] == "a"
    longer = data(server, f"/v1/organization/usage/totals?start_time={HOUR - 3 * DAY_S}")
    assert longer[0]["project_id"] == "c"


def test_adapters_by_bytes_and_by_requests(server: Running, publish: Publish) -> None:
    for _ in range(3):
        publish("large", "a")
    publish("small", "b")
    use(server, "b", "small", 3)
    use(server, "a", "b/small", 4)
    use(server, "a", "base", 99)
    use(server, "a", "gone", 1)
    assert eventually(lambda: bool(data(server, ADAPTERS)))
    by_bytes = server.http.get(ADAPTERS).json()
    assert [it["name"] for it in by_bytes["data"]] == ["large", "small"]
    large, small = by_bytes["data"]
    assert large["bytes"] == 3 * small["bytes"] > 0
    assert (by_bytes["adapters"], by_bytes["bytes"]) == (2, large["bytes"] + small["bytes"])
    assert (small["num_model_requests"], small["input_tokens"]) == (7, 70)
    busy = data(server, f"{ADAPTERS}?order=requests")
    assert [(it["project_id"], it["name"]) for it in busy] == [("b", "small"), ("a", "gone")]
    assert [it["bytes"] for it in busy] == [small["bytes"], None]
    assert [it["name"] for it in data(server, f"{ADAPTERS}?project_id=b")] == ["small"]
    assert len(data(server, f"{ADAPTERS}?limit=1")) == 1


def test_adapters_are_counted_once_a_minute(store: AdapterStore, publish: Publish) -> None:
    publish("pirate")
    asked: list[str] = []

    class Counting:
        def owners(self) -> list[str]:
            return store.owners()

        def sizes(self, owner: str) -> dict[str, int]:
            asked.append(owner)
            return store.sizes(owner)

    async def look() -> int:
        census = AdapterCensus(Counting())  # type: ignore[arg-type]
        for _ in range(5):
            found = await census.last()
        assert found is not None
        return sum(found.adapters.values())

    assert asyncio.run(look()) == 1
    assert asked == ["default"]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("team", ["team-a", "team-b"]),
        ("TEAM-B", ["team-b"]),
        ("Ü", ["proj"]),
        ("%", []),
        ("_", ["proj"]),
        ("\\", []),
        ("", ["default", "proj", "team-a", "team-b"]),
        ("\x00", ["default", "proj", "team-a", "team-b"]),
    ],
)
def test_owners_are_found_by_a_part_of_name_or_id(
    server: Running, search: str, found: list[str]
) -> None:
    for name in ("team-a", "team-b", "Über uns"):
        server.services.tenants.owners.create(name)
    answer = server.http.get("/v1/organization/projects", params={"search": search})
    assert [it["id"].partition("_")[0] for it in answer.json()["data"]] == found


@pytest.mark.parametrize(
    "path",
    [
        f"{ADAPTERS}?order=name",
        f"{ADAPTERS}?days=0",
        f"{ADAPTERS}?limit=101",
        "/v1/organization/usage/totals",
        "/v1/organization/usage/totals?start_time=-1",
        "/v1/organization/usage/totals?start_time=0&page=x",
        f"/v1/organization/projects?search={'x' * 257}",
    ],
)
def test_wrong_questions_are_told(server: Running, path: str) -> None:
    assert server.http.get(path).status_code == 400
