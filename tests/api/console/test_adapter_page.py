"""The page of one adapter: what it shows, to whom, and that its forms do what the API does."""

import io
from dataclasses import replace
from zipfile import ZipFile

import httpx
import pytest
import torch

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from server.db.audit_trail import Actor
from server.jobs.queue.train_options import TrainOptions
from server.tenancy.principal import DEFAULT_OWNER, SERVER_ADMIN
from server.tenancy.usage.audit_log import Wanted
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.fakes import FakeResidency
from tests.api.running import Publish, Running
from tests.small_adapters import small_manifest

HOME = "/console/adapters"


def put(store: AdapterStore, name: str, **provenance: str) -> AdapterRef:
    """Publish a version; with a `step`, as a checkpoint."""
    manifest = small_manifest(targets=("q",), provenance=provenance)
    tensors = {"q.d": torch.ones(4)}
    return store.publish(DEFAULT_OWNER, name, manifest, tensors, latest="step" not in provenance)


def upload(server: Running, name: str) -> str:
    files = server.services.files
    body = io.BytesIO(b'{"prompt": "a", "completion": "b"}\n' * 10)
    return files.create(DEFAULT_OWNER, name, "fine-tune", body).id


@pytest.fixture
def me(browser: Browser) -> httpx.Client:
    """A browser with the server's own key."""
    return browser(SERVER_KEY)


def section(page: str, title: str) -> str:
    return page.split(f'id="{title}"')[1].split("</section>")[0]


def test_the_versions_and_their_checkpoints(server: Running, store: AdapterStore) -> None:
    put(store, "pirate", job="ftjob-1", step="10", valid_loss="2.5")
    put(store, "pirate", job="ftjob-1", valid_loss="2.1", base_valid_loss="3.0")
    put(store, "pirate", job="ftjob-2", valid_loss="4.1", base_valid_loss="3.0")
    page = server.http.get(f"{HOME}/pirate").text
    versions, checkpoints = section(page, "versions-title").split("<details")
    assert [f">@{number}</a>" in versions for number in (1, 2, 3)] == [False, True, True]
    assert versions.index("@3</a>") < versions.index("@2</a>")
    assert versions.count("latest</span>") == 1 and versions.count(">worse<") == 1
    assert "2.1" in versions and "base 3.0" in versions
    assert "step 10" in checkpoints and ">@1</a>" in checkpoints
    one = server.http.get(f"{HOME}/pirate@2").text
    assert "earlier version" in one and "Make this the latest" in one
    assert ">checkpoint</span>" in server.http.get(f"{HOME}/pirate@1").text


def test_many_versions_come_a_page_at_a_time(server: Running, store: AdapterStore) -> None:
    for _ in range(25):
        put(store, "pirate")
    first = section(server.http.get(f"{HOME}/pirate").text, "versions-title")
    assert first.count("/pirate@") and "@25</a>" in first and "@5</a>" not in first
    assert "?versions=6#versions" in first
    rest = section(server.http.get(f"{HOME}/pirate?versions=6").text, "versions-title")
    assert "@5</a>" in rest and "@6</a>" not in rest and "Show earlier" not in rest


def test_where_it_comes_from(server: Running, store: AdapterStore) -> None:
    file = upload(server, '<img src=x>".jsonl')
    job = server.services.jobs.create(
        DEFAULT_OWNER, "base", file, suffix="pirate", hyperparameters=TrainOptions()
    )
    put(store, "pirate", job=job.id, training_file=file)
    put(store, "pirate", job="ftjob-gone", training_file="file-gone", continued_from="pirate@1")
    put(store, "pirate", copied_from="pirate@2")
    page = server.http.get(f"{HOME}/pirate").text
    lineage = section(page, "lineage-title")
    places = [
        lineage.index(it)
        for it in (
            f'href="/console/jobs/{job.id}"',
            f'href="/console/data/{file}"',
            'href="/console/adapters/pirate@1"',
            "ftjob-gone",
            "file-gone",
            'href="/console/adapters/pirate@2"',
            "copied",
            'href="/console/adapters/pirate@3"',
        )
    ]
    assert places == sorted(places)
    assert lineage.count("deleted since") == 2
    assert "&lt;img src=x&gt;&#34;.jsonl" in lineage and "<img src=x" not in page
    store.delete(DEFAULT_OWNER, "pirate", 1)
    assert section(server.http.get(f"{HOME}/pirate").text, "lineage-title").count("deleted") == 3
    server.services.jobs.create(DEFAULT_OWNER, "pirate@2", file, suffix="next")
    assert "Trained on from here" in server.http.get(f"{HOME}/pirate@2").text
    assert "Trained on from here" not in server.http.get(f"{HOME}/pirate@3").text


def test_a_long_line_is_cut(server: Running, store: AdapterStore) -> None:
    put(store, "pirate", job="ftjob-1")
    for version in range(1, 20):
        put(store, "pirate", job=f"ftjob-{version + 1}", continued_from=f"pirate@{version}")
    lineage = section(server.http.get(f"{HOME}/pirate").text, "lineage-title")
    assert "and what was before" in lineage
    assert 10 < lineage.count("<li") < 20


@pytest.mark.parametrize(
    "origin",
    [
        {"continued_from": '<script>alert("x")</script>'},
        {"continued_from": "team-z/gone@1", "job": '"><script>x'},
        {"copied_from": "pirate@0"},
        {"imported_from": "<script>x"},
        {"job": "<script>x", "training_file": "<script>y", "valid_loss": "<script>"},
        {},
    ],
)
def test_what_a_header_says_is_text(
    server: Running, store: AdapterStore, origin: dict[str, str]
) -> None:
    put(store, "pirate", **origin)
    page = server.http.get(f"{HOME}/pirate")
    assert page.status_code == 200
    assert "<script>" not in page.text and 'alert("' not in page.text


def test_the_latest_is_gone_back_to(
    keyed: Running, me: httpx.Client, publish: Publish, store: AdapterStore
) -> None:
    publish("pirate")
    publish("pirate")
    answer = me.post(f"{HOME}/-/latest/pirate@1")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{HOME}/pirate")
    shown = me.get("/console/v1/adapters/pirate").json()
    assert (shown["version"], shown["versions"]) == (3, [1, 2, 3])
    entry = keyed.services.tenants.audit.list(Wanted(actions=["adapter.copied"]))[0][0]
    assert (entry.object, entry.after) == ("pirate@3", {"from": "pirate@1"})


def test_pinned_by_the_servers_admin_alone(
    keyed: Running, me: httpx.Client, browser: Browser, make_key: MakeKey, publish: Publish
) -> None:
    publish("pirate")
    assert "Pin @1" in me.get(f"{HOME}/pirate").text
    part = me.post(
        f"{HOME}/-/pin/pirate@1", data={"pinned": "true"}, headers={"hx-request": "true"}
    )
    assert "Unpin @1" in part.text and "<html" not in part.text
    assert me.get("/console/v1/adapters/pirate").json()["pinned"] is True
    assert "pinned" in me.get(f"{HOME}/-/place/pirate@1").text
    assert me.post(f"{HOME}/-/pin/pirate@1", data={"pinned": "false"}).status_code == 303
    assert me.get("/console/v1/adapters/pirate").json()["pinned"] is False
    publish("mine", "team-a")
    ann = browser(make_key("team-a", "adapters.read", "adapters.write"))
    assert "Pin @" not in ann.get(f"{HOME}/mine").text
    assert ann.post(f"{HOME}/-/pin/mine").status_code == 403


def test_shared_and_not_any_more(
    keyed: Running, me: httpx.Client, make_key: MakeKey, publish: Publish
) -> None:
    make_key("team-b")
    publish("pirate")
    form = {"receiver": " team-b ", "to": "copy"}
    answer = me.post(f"{HOME}/-/share/pirate", data=form)
    assert answer.headers["location"] == f"{HOME}/pirate#sharing"
    share = me.get("/console/v1/shares").json()["data"][0]
    assert (share["adapter"], share["with"], share["to"]) == ("pirate", "team-b", "copy")
    page = section(me.get(f"{HOME}/pirate").text, "sharing-title")
    assert "team-b" in page and "copy it" in page
    assert me.post(f"{HOME}/-/share/pirate", data={"receiver": "nobody"}).status_code == 404
    assert me.post(f"{HOME}/-/share/pirate", data={"receiver": "all", "to": "x"}).status_code == 400
    me.post(f"{HOME}/-/unshare/{share['id']}", data={"adapter": "pirate"})
    assert me.get("/console/v1/shares").json()["data"] == []
    assert me.post(f"{HOME}/-/unshare/share_x", data={"adapter": "pirate"}).status_code == 404


def test_a_form_comes_back_to_its_own_page(
    keyed: Running, me: httpx.Client, publish: Publish
) -> None:
    publish("pirate")

    def shared(receiver: str, page: str) -> httpx.Headers:
        asked = {"hx-request": "true", "hx-current-url": f"{keyed.url}{HOME}/{page}"}
        return me.post(f"{HOME}/-/share/pirate", data={"receiver": receiver}, headers=asked).headers

    assert shared("nobody", "pirate")["hx-retarget"] == "#notices"  # what was typed stays
    assert shared("all", "pirate@1")["hx-redirect"] == f"{HOME}/pirate#sharing"
    for page in ("pirate", "pirate#sharing", "pirate?versions=9"):  # a fragment loads nothing
        assert shared("all", page)["hx-refresh"] == "true"


def test_what_a_deletion_would_lose(keyed: Running, me: httpx.Client, store: AdapterStore) -> None:
    put(store, "pirate", job="ftjob-1", step="10")
    put(store, "pirate", job="ftjob-1")
    ref = put(store, "pirate")
    services = keyed.services
    services.tenants.owners.create("team-b")
    services.tenants.shares.give(DEFAULT_OWNER, "pirate", "team-b", "use", by=SERVER_ADMIN)
    job = services.jobs.create(DEFAULT_OWNER, "pirate@2", upload(keyed, "a.jsonl"))
    residency = services.residency
    assert isinstance(residency, FakeResidency)
    residency.pin(ref)
    residency.residents[ref] = replace(residency.residents[ref], in_use=2)
    meter = services.usage.begin(Actor("server", None, None, DEFAULT_OWNER, ""), "pirate", 7)
    services.usage.end(meter)
    services.tenants.usage.add("test", 1, services.usage.take())
    whole = me.get(f"{HOME}/-/delete/pirate").text
    for told in (
        *("<strong>2</strong> versions", "<strong>1</strong> checkpoint", "team-b", "1 times"),
        *("2 answers", "pinned", job.id, "Type <code>pirate</code>"),
    ):
        assert told in whole, told
    one = me.get(f"{HOME}/-/delete/pirate@2", headers={"hx-request": "true"}).text
    assert "<html" not in one and 'name="confirm"' not in one
    assert "<strong>1</strong> checkpoint of its training job" in one
    assert job.id in one and "team-b" not in one and "will mean" not in one
    assert "will mean version 2" in me.get(f"{HOME}/-/delete/pirate@3").text


def test_a_whole_adapter_goes_only_if_its_name_is_typed(
    me: httpx.Client, publish: Publish, store: AdapterStore
) -> None:
    publish("pirate")
    publish("pirate")
    for typed in ("", "Pirate", "butler"):
        refused = me.post(f"{HOME}/-/delete/pirate", data={"confirm": typed})
        assert refused.status_code == 400 and "Nothing was deleted" in refused.text
    assert store.versions(DEFAULT_OWNER, "pirate") == [1, 2]
    gone = me.post(f"{HOME}/-/delete/pirate@2")
    assert gone.headers["location"] == f"{HOME}/pirate"
    assert me.get("/console/v1/adapters/pirate").json()["versions"] == [1]
    gone = me.post(f"{HOME}/-/delete/pirate", data={"confirm": " pirate "})
    assert gone.headers["location"] == HOME
    assert me.get(f"{HOME}/pirate").status_code == 404
    publish("parrot")
    assert me.post(f"{HOME}/-/delete/parrot@1").headers["location"] == HOME


def test_a_damaged_pointer_can_be_deleted(
    me: httpx.Client, publish: Publish, store: AdapterStore
) -> None:
    (store.path(publish("pirate")).parent.parent / "latest").write_text("<script>")
    assert "is damaged" in me.get(f"{HOME}/-/delete/pirate").text
    answer = me.post(f"{HOME}/-/delete/pirate", data={"confirm": "pirate"})
    assert answer.status_code == 303
    assert store.names(DEFAULT_OWNER) == []


def test_exported_as_the_api_does(me: httpx.Client, publish: Publish) -> None:
    publish("pirate")
    page = me.get(f"{HOME}/pirate").text
    for form in ("peft", "peft-lora", "merged"):
        assert f"/-/export/pirate?format={form}" in page
        answer = me.get(f"{HOME}/-/export/pirate?format={form}")
        assert answer.headers["content-type"] == "application/zip"
        assert "adapter_config.json" in ZipFile(io.BytesIO(answer.content)).namelist()
    assert me.get(f"{HOME}/-/export/pirate?format=gguf").status_code == 400
    missing = me.get(f"{HOME}/-/export/nobody")
    assert missing.status_code == 404 and "<html" in missing.text


def test_anothers_shows_what_the_api_shows(
    keyed: Running, browser: Browser, make_key: MakeKey, publish: Publish
) -> None:
    ann = browser(make_key("team-a", "adapters.read", "adapters.write", "jobs", "files"))
    make_key("team-b")
    publish("pirate", "team-b")
    here = f"{HOME}/team-b/pirate"
    absent = ann.get(here), ann.get(f"{HOME}/team-b/nothing")
    assert [it.status_code for it in absent] == [404, 404]
    assert absent[0].text.replace("pirate", "nothing") == absent[1].text
    shares = keyed.services.tenants.shares
    shares.give("team-b", "pirate", "team-a", "use", by=SERVER_ADMIN)
    used = ann.get(here).text
    assert "shared by team-b to use" in used
    private = (
        "ftjob-1",
        "lineage-title",
        "place-title",
        "sharing-title",
        "/-/delete/",
        "/-/export/",
    )
    for told in (*private, "data-analysis", "/-/latest/", "Make it your own"):
        assert told not in used, told
    shares.give("team-b", "pirate", "team-a", "copy", by=SERVER_ADMIN)
    copied = ann.get(here).text
    assert "data-analysis" in copied and "/-/export/" in copied and "ftjob-1" not in copied
    answer = ann.post(f"{HOME}/-/copy/team-b/pirate", data={"name": "mine"})
    assert answer.headers["location"] == f"{HOME}/mine"
    assert ann.get(f"{HOME}/mine").status_code == 200
    for action in ("delete", "latest", "share"):
        form = {"confirm": "pirate", "receiver": "all"}
        refused = ann.post(f"{HOME}/-/{action}/team-b/pirate", data=form)
        assert refused.status_code == 404, action
    assert keyed.services.adapters.versions("team-b", "pirate") == [1]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "-/delete/pirate"),
        ("POST", "-/delete/pirate"),
        ("POST", "-/latest/pirate"),
        ("POST", "-/copy/pirate"),
        ("POST", "-/share/pirate"),
        ("POST", "-/unshare/share_1"),
        ("POST", "-/pin/pirate"),
    ],
)
def test_what_changes_something_needs_the_scope(
    browser: Browser, make_key: MakeKey, publish: Publish, method: str, path: str
) -> None:
    publish("pirate", "team-a")
    reader = browser(make_key("team-a", "adapters.read"))
    assert reader.request(method, f"{HOME}/{path}").status_code == 403
    page = reader.get(f"{HOME}/pirate").text
    for offered in ("/-/delete/", "/-/latest/", "/-/share/", "/-/pin/"):
        assert offered not in page
    other = browser(make_key("team-b", "adapters.write", "adapters.read"))
    assert other.request(method, f"{HOME}/{path}").status_code in (403, 404, 400)


def test_used_by_the_owner_in_thirty_days(
    keyed: Running, me: httpx.Client, publish: Publish
) -> None:
    publish("pirate")
    assert "Not asked in the last 30 days" in me.get(f"{HOME}/pirate").text
    counts = keyed.services.usage
    for _ in range(3):
        counts.end(counts.begin(Actor("server", None, None, DEFAULT_OWNER, ""), "pirate", 70))
    counts.end(counts.begin(Actor("server", None, None, "team-z", ""), "pirate", 5000))
    keyed.services.tenants.usage.add("test", 1, counts.take())
    usage = section(me.get(f"{HOME}/pirate").text, "usage-title")
    assert "3 in 30 days" in usage and ">210<" in usage
    assert usage.count("<rect") == 30


def test_the_analysis_begins_by_itself_where_it_is_quick(
    server: Running, publish: Publish, store: AdapterStore
) -> None:
    publish("pirate")
    dense = small_manifest(method="randlora", targets=("q",))
    store.publish(DEFAULT_OWNER, "dense", dense, {"q.d": torch.ones(4)})
    assert 'data-quick="true"' in server.http.get(f"{HOME}/pirate").text
    assert 'data-quick="false"' in server.http.get(f"{HOME}/dense").text
    assert (
        'data-analysis="/console/v1/adapters/pirate@1/analysis"'
        in server.http.get(f"{HOME}/pirate").text
    )


@pytest.mark.parametrize(
    "path", ["base", "pirate@9", "pirate@x", "a/b/c", "%3Cscript%3E", "..%2fx"]
)
def test_what_is_no_adapter_is_an_error_page(server: Running, publish: Publish, path: str) -> None:
    publish("pirate")
    answer = server.http.get(f"{HOME}/{path}")
    assert answer.status_code in (400, 404)
    assert "<script>" not in answer.text and "<html" in answer.text
