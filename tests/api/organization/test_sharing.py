"""Owners share adapters to use or to copy, and what is not shared does not exist for others."""

# ruff: noqa: RUF001 - names that look like others

import io
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from adapters_store.manifest import Manifest
from adapters_store.store import AdapterStore
from server.db.session import Database
from server.errors import Conflict
from server.tenancy.keys import Keys
from server.tenancy.principal import SERVER_ADMIN
from server.tenancy.shares import MOST_WITH_ONE, Shares
from tests.api.running import Publish, Running, Serve

Json = dict[str, Any]
Call = Callable[..., httpx.Response]


@pytest.fixture
def locked(serve: Serve, server: Running, publish: Publish) -> Running:
    running = serve(keys=Keys("the key", server.services.tenants.keys))
    for owner in ("team-a", "team-b", "team-c"):
        running.services.tenants.owners.create(owner)
    for version in range(1, 4):
        assert publish("pirate", "team-b").version == version
    publish("secret", "team-b")
    return running


@pytest.fixture
def call(locked: Running) -> Call:
    """Sends a request with an owner's key for all but `admin`."""
    keys = {"admin": "the key"}
    for owner in ("team-a", "team-b", "team-c"):
        made = locked.services.tenants.keys.create(owner, "bot", by=SERVER_ADMIN)
        keys[owner] = made[1]

    def call(who: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {keys[who]}"}
        return locked.http.request(method, path, headers=headers, **options)

    return call


def share(call: Call, whom: str = "team-a", to: str = "use", name: str = "pirate") -> Json:
    answer = call("team-b", "POST", "/v1/shares", json={"adapter": name, "with": whom, "to": to})
    assert answer.is_success, answer.text
    document: Json = answer.json()
    return document


def chat(call: Call, who: str, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return call(who, "POST", "/v1/chat/completions", json=body)


def models(call: Call, who: str) -> dict[str, Json]:
    return {model["id"]: model for model in call(who, "GET", "/v1/models").json()["data"]}


def test_a_shared_adapter_can_be_asked_and_is_listed_as_such(locked: Running, call: Call) -> None:
    made = share(call)
    assert (made["adapter"], made["owner"], made["with"]) == ("pirate", "team-b", "team-a")
    for model, version in (("team-b/pirate", 3), ("team-b/pirate@2", 2)):
        answer = chat(call, "team-a", model)
        assert answer.json()["model"] == f"team-b/pirate@{version}"
        asked = locked.loop.asked[-1]
        assert asked.owner == "team-a" and asked.adapter is not None
        assert (asked.adapter.owner, asked.adapter.version) == ("team-b", version)
    assert call("team-a", "GET", "/v1/models").json()["data"][-1]["id"] == "team-b/pirate"
    card = models(call, "team-a")["team-b/pirate"]
    assert (card["shared"], card["owned_by"], card["root"]) == ("use", "team-b", "team-b/pirate@3")
    assert "shared" not in models(call, "team-b")["pirate"]
    assert "team-b/pirate" not in models(call, "team-c")
    entry = call("team-a", "GET", "/v1/adapters/team-b/pirate").json()
    assert (entry["owner"], entry["shared"], entry["versions"]) == ("team-b", "use", [1, 2, 3])
    private = {"provenance", "sha256", "seed", "in_use", "pinned", "slot", "residency"}
    assert not private & entry.keys()
    assert "ftjob-1" not in call("team-a", "GET", "/v1/adapters").text
    assert call("team-a", "GET", "/v1/adapters").json()["total"] == 1
    given = call("team-b", "GET", "/v1/shares?adapter=pirate").json()["data"]
    received = call("team-a", "GET", "/v1/shares?received=true").json()["data"]
    assert [one["id"] for one in given] == [one["id"] for one in received] == [made["id"]]
    assert received[0]["adapter"] == "team-b/pirate" and "created_by" not in received[0]


def test_to_use_is_not_to_copy(locked: Running, call: Call) -> None:
    share(call)
    refused = [
        call("team-a", "GET", "/v1/adapters/team-b/pirate/export"),
        call("team-a", "GET", "/v1/adapters/team-b/pirate/analysis"),
        call("team-a", "POST", "/v1/adapters/team-b/pirate/copy", json={"name": "mine"}),
        call(
            *("team-a", "POST", "/v1/fine_tuning/jobs"),
            json={"model": "team-b/pirate", "training_file": "file-1"},
        ),
    ]
    for answer in refused:
        assert answer.status_code == 403, answer.text
        assert "to use, not to copy" in answer.json()["error"]["message"]
    assert call("team-a", "DELETE", "/v1/adapters/team-b/pirate").status_code == 404
    again = call("team-a", "POST", "/v1/shares", json={"adapter": "team-b/pirate", "with": "all"})
    assert again.status_code == 404, "what one receives is not one's to share"
    share(call, to="copy")
    exported = call("team-a", "GET", "/v1/adapters/team-b/pirate/export")
    assert exported.is_success and exported.content[:2] == b"PK"
    copied = call("team-a", "POST", "/v1/adapters/team-b/pirate@2/copy", json={"name": "mine"})
    assert copied.json()["id"] == "mine@1" and copied.is_success
    compared = call("team-a", "GET", "/v1/adapters/mine/analysis?compare=team-b/pirate").json()
    assert (compared["id"], compared["comparison"]["id"]) == ("mine@1", "team-b/pirate@3")
    share(call, to="use")
    narrowed = call("team-a", "GET", "/v1/adapters/mine/analysis?compare=team-b/pirate")
    assert narrowed.status_code == 403
    assert models(call, "team-a").keys() == {"base", "mine", "team-b/pirate"}


def test_with_all_and_the_wider_right_counts(call: Call) -> None:
    share(call, "all", "use")
    share(call, "TEAM-A", "copy")
    assert models(call, "team-a")["team-b/pirate"]["shared"] == "copy"
    assert models(call, "team-c")["team-b/pirate"]["shared"] == "use"
    assert models(call, "admin")["team-b/pirate"]["shared"] == "use"
    assert models(call, "team-b").keys() == {"base", "pirate", "secret"}
    assert len(call("team-a", "GET", "/v1/shares?received=true").json()["data"]) == 2


def test_an_ended_share_is_felt_at_once_by_every_process(locked: Running, call: Call) -> None:
    other = Shares(locked.services.tenants.shares._database)
    made = share(call)
    other.refresh()
    assert other.given("team-a", "team-b", "pirate") == "use"
    assert call("team-a", "DELETE", f"/v1/shares/{made['id']}").status_code == 404
    assert call("team-b", "DELETE", f"/v1/shares/{made['id']}").json()["deleted"]
    assert chat(call, "team-a", "team-b/pirate").status_code == 404
    other.refresh()
    assert other.given("team-a", "team-b", "pirate") is None
    assert call("team-b", "GET", "/v1/shares").json()["data"] == []


@pytest.mark.parametrize("ending", ["name", "last version", "archive"])
def test_what_ends_the_adapter_or_its_owner_ends_the_share(
    ending: str, locked: Running, call: Call, publish: Publish
) -> None:
    share(call)
    if ending == "name":
        assert call("team-b", "DELETE", "/v1/adapters/pirate").is_success
    elif ending == "last version":
        for version in (3, 1, 2):
            assert call("team-b", "DELETE", f"/v1/models/pirate@{version}").is_success
    else:
        assert call("admin", "POST", "/v1/organization/projects/team-b/archive").is_success
    publish("pirate", "team-b")
    assert chat(call, "team-a", "team-b/pirate").status_code == 404
    assert call("team-a", "GET", "/v1/shares?received=true").json()["data"] == []


def test_checkpoints_are_not_shared(locked: Running, call: Call, store: AdapterStore) -> None:
    ref = store.resolve("team-b", "pirate", 1)
    manifest, tensors, _ = store.load(ref)
    assert isinstance(manifest, Manifest)
    store.publish("team-b", "pirate", manifest, tensors, latest=False)
    share(call, to="copy")
    assert chat(call, "team-b", "pirate@4").is_success
    told = [chat(call, "team-a", f"team-b/pirate@{number}") for number in (4, 5)]
    assert [answer.status_code for answer in told] == [404, 404]
    assert call("team-a", "GET", "/v1/adapters/team-b/pirate").json()["versions"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"adapter": "pirate", "with": "nobody"}, 404),
        ({"adapter": "nothing", "with": "team-a"}, 404),
        ({"adapter": "../pirate", "with": "team-a"}, 404),
        ({"adapter": "team-c/pirate", "with": "team-a"}, 404),
        ({"adapter": "pirate@2", "with": "team-a"}, 400),
        ({"adapter": "base", "with": "team-a"}, 400),
        ({"adapter": "pirate", "with": "team-b"}, 400),
        ({"adapter": "pirate", "with": "team-a", "to": "own"}, 400),
        ({"adapter": "pirate"}, 400),
        ({"adapter": "pirate", "with": "\0"}, 404),
    ],
)
def test_a_wrong_share_is_refused(body: Json, status: int, call: Call) -> None:
    answer = call("team-b", "POST", "/v1/shares", json=body)
    assert answer.status_code == status, answer.text
    assert call("team-b", "GET", "/v1/shares").json()["data"] == []


def test_one_owner_cannot_fill_anothers_lists(locked: Running) -> None:
    shares = locked.services.tenants.shares
    for number in range(MOST_WITH_ONE):
        shares.give("team-b", f"a{number}", "all", "use", by=SERVER_ADMIN)
    with pytest.raises(Exception, match="shares 100 adapters with 'all' already"):
        shares.give("team-b", "more", "all", "use", by=SERVER_ADMIN)
    shares.give("team-b", "a1", "all", "copy", by=SERVER_ADMIN)  # a change needs no room


def test_what_is_not_shared_costs_and_tells_as_much_as_what_is_not_there(
    locked: Running, call: Call
) -> None:
    """`secret` is there, `nothing` is not: same words, same statements, about the same time."""
    share(call)
    database: Database = locked.services.tenants.shares._database
    statements: list[str] = []
    listen = database._engine, "before_cursor_execute"
    event.listen(*listen, count := lambda _c, _u, text, *_: statements.append(text))
    seen: dict[str, tuple[set[str], int]] = {}
    times: dict[str, list[float]] = {}
    names = "team-b/secret", "team-b/nothin", "team-x/secret"
    try:
        for _ in range(30):
            for name in names:
                before, began = len(statements), time.perf_counter()
                told = [chat(call, "team-a", name), call("team-a", "GET", f"/v1/adapters/{name}")]
                times.setdefault(name, []).append(time.perf_counter() - began)
                assert [answer.status_code for answer in told] == [404, 404]
                words = {answer.text.replace(name, "?") for answer in told}
                seen.setdefault(name, (words, len(statements) - before))
    finally:
        event.remove(*listen, count)
    assert seen["team-b/secret"][0] == seen["team-b/nothin"][0] == seen["team-x/secret"][0]
    assert {cost for _, cost in [*seen.values()][1:]} == {0}
    ratio = median(times["team-b/secret"]) / median(times["team-b/nothin"])
    assert 0.5 < ratio < 2, ratio


def test_only_the_servers_admin_pins(locked: Running, call: Call) -> None:
    for owner, name in (("team-b", "pirate"), ("team-a", "team-b/pirate")):
        assert call(owner, "POST", f"/v1/adapters/{name}/pin").status_code == 403
    pinned = call("admin", "POST", "/v1/adapters/team-b/pirate/pin")
    assert pinned.json()["pinned"] and pinned.json()["id"] == "team-b/pirate"
    assert call("team-b", "POST", "/v1/adapters/pirate/unpin").status_code == 403
    assert call("team-b", "GET", "/v1/adapters/pirate").json()["pinned"]
    assert not call("admin", "POST", "/v1/adapters/team-b/pirate/unpin").json()["pinned"]


def test_an_archived_owners_jobs_end_and_nothing_is_added(locked: Running, call: Call) -> None:
    lines = "\n".join(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
        for _ in range(10)
    )
    upload = {"file": ("a.jsonl", lines)}
    sent = call("team-a", "POST", "/v1/files", files=upload, data={"purpose": "fine-tune"})
    file_id = sent.json()["id"]
    body = {"model": "base", "training_file": file_id}
    jobs = [call("team-a", "POST", "/v1/fine_tuning/jobs", json=body).json() for _ in range(4)]
    queue = locked.services.jobs
    running = queue.claim("worker", 60)
    queue.pause("team-a", jobs[2]["id"])
    assert call("admin", "POST", "/v1/organization/projects/team-a/archive").is_success
    states = {job.id: (job.status, job.cancel_requested) for job in queue.list("team-a").items}
    assert running is not None and states.pop(running.id) == ("running", True)
    assert len(states) == 3 and {state for state, _ in states.values()} == {"cancelled"}
    assert queue.claim("worker", 60) is None
    with pytest.raises(Conflict, match="'team-a' is archived"):
        queue.create("team-a", "base", file_id)
    with pytest.raises(Conflict, match="'team-a' is archived"):
        locked.services.files.create("team-a", "b.jsonl", "fine-tune", io.BytesIO(b"{}"))


@pytest.mark.parametrize(
    "name",
    [
        "tеam-a",  # a Cyrillic letter
        "ＡＬＬ",
        "All",
        "tea\u0131n",
        "\u0391lpha",
        "team\u2010a",
        "ｔeam-a\u3000",
    ],
)
def test_a_name_that_looks_like_another_is_refused(name: str, call: Call) -> None:
    answer = call("admin", "POST", "/v1/organization/projects", json={"name": name})
    assert answer.status_code in (400, 409), answer.text
    renamed = call("admin", "POST", "/v1/organization/projects/team-c", json={"name": name})
    assert renamed.status_code in (400, 409), renamed.text


def test_names_of_one_form_are_one_name(call: Call) -> None:
    for name, status in (
        ("Über ｘ", 200),
        ("u\u0308ber x", 409),
        ("TEAM\u212a", 200),
        ("teamk", 409),
    ):
        answer = call("admin", "POST", "/v1/organization/projects", json={"name": name})
        assert answer.status_code == status, answer.text
