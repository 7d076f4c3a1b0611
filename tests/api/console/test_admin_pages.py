"""The pages of the server's admin show what the API shows, change what it does, and open to no one
else."""

import re
import time
from html import unescape
from typing import Any

import httpx
import pytest

from adapters_store.store import AdapterStore
from server.api.app_services import Services
from server.db.tenancy_tables import OwnerRow
from server.db.usage_rows import HOUR_S, UsageKey
from server.tenancy.keys import Keys
from server.tenancy.principal import SCOPES, SERVER_ADMIN
from server.tenancy.usage.audit_log import Wanted
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Publish, Running, Serve, eventually

ADMIN = "/console/admin"
OWNERS = f"{ADMIN}/owners"
PAGES = (
    *(ADMIN, f"{ADMIN}/state", OWNERS, f"{OWNERS}/team-a", f"{OWNERS}/team-a/deletion"),
    *(f"{ADMIN}/usage", f"{ADMIN}/adapters", f"{ADMIN}/audit", f"{ADMIN}/keys"),
)
FORMS = (
    *(OWNERS, f"{ADMIN}/keys", f"{ADMIN}/keys/key_1/revoke"),
    *(f"{OWNERS}/team-a/{it}" for it in ("name", "limits", "archive", "delete")),
)
ODD = "<script>alert(1)</script>"


@pytest.fixture
def root(browser: Browser) -> httpx.Client:
    return browser(SERVER_KEY)


@pytest.fixture
def team(keyed: Running) -> Services:
    """The services of a server with the owner team-a."""
    keyed.services.tenants.owners.create("team-a")
    return keyed.services


def use(services: Services, owner: str, model: str, requests: int) -> None:
    hour = int(time.time()) // HOUR_S * HOUR_S
    counts = {"requests": requests, "prompt": 10 * requests, "completion": requests}
    counted = {(hour, UsageKey(owner, "key", "", model)): counts}
    services.tenants.usage.add(f"{owner} {model}", 1, counted)


@pytest.mark.parametrize("scopes", [SCOPES, ("models.use",)])
def test_nobody_else_gets_in(
    browser: Browser, make_key: MakeKey, keyed: Running, scopes: tuple[Any, ...]
) -> None:
    ann = browser(make_key("team-a", *scopes))
    before = keyed.services.tenants.audit.list(Wanted(), limit=100)[0]
    for path in PAGES:
        answer = ann.get(path)
        assert answer.status_code == 403, path
        assert "only the server" in unescape(answer.text)
    for path in FORMS:
        form = {"name": "x", "typed": "team-a", "files": "1"}
        assert ann.post(path, data=form).status_code == 403, path
    assert 'href="/console/admin"' not in ann.get("/console").text
    assert keyed.services.tenants.audit.list(Wanted(), limit=100)[0] == before


def test_what_runs_is_as_health_tells(serve: Serve, keyed: Running) -> None:
    class Part:
        def __init__(self, alive: bool, restarts: int, problem: str = "") -> None:
            self.alive, self.restarts, self.problem = alive, restarts, problem

    engines = (Part(True, 0), Part(False, 7, f"it crashed: {ODD}"))
    running = serve(engines=engines, worker=Part(True, 3), keys=Keys(None))
    page = running.http.get(ADMIN).text
    rows = [re.sub(r"<[^>]+>|\s+", " ", row) for row in page.split("<tr>")[2:]]
    told = [" ".join(row.split()) for row in rows]
    assert "Engine process 1 runs 0" in told[2]
    assert "Engine process 2 is down 7 it crashed: &lt;script&gt;" in told[3]
    assert "Training worker runs 3" in told[4]
    assert "needs a look" in page and ODD not in page
    part = running.http.get(f"{ADMIN}/state").text
    assert "Training worker" in part and "<html" not in part


def test_owners_are_made_found_and_listed_in_pages(root: httpx.Client, team: Services) -> None:
    made = root.post(OWNERS, data={"name": "Über uns"})
    assert made.headers["location"].startswith(f"{OWNERS}/proj_")
    assert root.get(made.headers["location"]).status_code == 200
    assert root.post(OWNERS, data={"name": "team-a"}).status_code == 409
    assert root.post(OWNERS, data={"name": ""}).status_code == 400
    for number in range(60):
        team.tenants.owners.create(f"customer-{number:02}")
    page = root.get(OWNERS).text
    assert "customer-00<" in page and "team-a<" not in page
    more = re.search(r'class="more"><a class="button" href="([^"]+)"', page)
    assert more is not None
    assert "team-a<" in root.get(unescape(more[1])).text
    found = root.get(OWNERS, params={"search": "Über"}).text
    assert "Über uns" in found and "customer-00<" not in found
    team.tenants.owners.archive("customer-05")
    assert "customer-05<" not in root.get(f"{OWNERS}?search=customer-05").text
    assert "archived" in root.get(f"{OWNERS}?search=customer-05&archived=true").text
    assert "No owner is called so" in root.get(f"{OWNERS}?search=%3Cscript%3E").text


def test_an_owner_is_renamed_and_limited(root: httpx.Client, team: Services) -> None:
    here = f"{OWNERS}/team-a"
    assert root.post(f"{here}/name", data={"name": "Team A!"}).headers["location"] == here
    assert team.tenants.owners.get("team-a").name == "Team A!"
    form = {"files": "50", "stored_bytes": "2,000,000", "weight": "2.5", "adapters": "", "x": "1"}
    assert root.post(f"{here}/limits", data=form).headers["location"] == here
    limits = team.tenants.limits.get("team-a")
    assert (limits.files, limits.stored_bytes, limits.weight) == (50, 2_000_000, 2.5)
    page = root.get(here).text
    assert 'name="files" value="50"' in page and "2.0 MB" in page
    entry = team.tenants.audit.list(Wanted(actions=["rate_limit.updated"]))[0][0]
    assert set(entry.after or {}) == {"files", "stored_bytes", "weight"}, "only what changed"
    root.post(f"{here}/limits", data={"weight": "2.5"})
    again = team.tenants.limits.get("team-a")
    assert (again.files, again.stored_bytes, again.weight) == (0, 0, 2.5)


@pytest.mark.parametrize("value", ["-1", "many", "1e3", "9" * 30, "nan", "0x10", "1 000"])
def test_a_limit_that_is_none_changes_nothing(
    root: httpx.Client, team: Services, value: str
) -> None:
    before = team.tenants.limits.get("team-a")
    for name in ("files", "weight"):
        answer = root.post(f"{OWNERS}/team-a/limits", data={name: value})
        assert answer.status_code == 400, (name, value)
    assert team.tenants.limits.get("team-a") == before


def test_an_owner_is_archived_and_deleted_by_name_alone(root: httpx.Client, team: Services) -> None:
    here = f"{OWNERS}/team-a"
    for typed in ("", "team", "TEAM-A", "default"):
        assert root.post(f"{here}/delete", data={"typed": typed}).status_code == 400
    assert team.tenants.owners.get("team-a").status == "active"
    root.post(f"{here}/archive")
    assert team.tenants.owners.get("team-a").status == "archived"
    assert "Archive it" not in root.get(here).text
    gone = root.post(f"{here}/delete", data={"typed": " team-a ", "export": "copy"})
    assert gone.headers["location"] == here
    assert team.tenants.deletions.get("team-a").export == "copy"
    page = root.get(here).text
    assert f'hx-get="{here}/deletion"' in page and "Delete it" not in page
    part = root.get(f"{here}/deletion").text
    assert "<strong>jobs</strong>" in part and "<html" not in part
    team.tenants.deletions.finish("team-a")
    assert "All is gone" in root.get(f"{here}/deletion").text
    default = root.get(f"{OWNERS}/default").text
    assert "Delete it" not in default and "Archive it" not in default
    assert root.post(f"{OWNERS}/default/delete", data={"typed": "default"}).status_code == 409
    assert root.get(f"{OWNERS}/nobody").status_code == 404


def test_usage_is_told_by_owner(root: httpx.Client, team: Services) -> None:
    assert "Nobody has asked anything" in root.get(f"{ADMIN}/usage").text
    use(team, "team-a", "base", 3)
    use(team, "busy", "base", 12_345)
    for window in ("24h", "7d", "30d"):
        page = root.get(f"{ADMIN}/usage?window={window}").text
        assert page.index("busy</a>") < page.index("team-a</a>")
        assert "12,345" in page and "123.5 k" in page
    assert root.get(f"{ADMIN}/usage?window=1y").status_code == 400
    owner = root.get(f"{OWNERS}/team-a").text
    assert "Last 30 days" in owner and "polyline" in owner


def test_adapters_of_all_owners(root: httpx.Client, team: Services, publish: Publish) -> None:
    for name, owner in (("small", "default"), ("large", "team-a"), ("large", "team-a")):
        publish(name, owner)
    use(team, "default", "team-a/large", 1)
    use(team, "default", "small", 5)
    assert eventually(lambda: "large" in root.get(f"{ADMIN}/adapters").text)
    page = root.get(f"{ADMIN}/adapters").text
    assert page.index(">large<") < page.index(">small<")
    busy = root.get(f"{ADMIN}/adapters?order=requests").text
    assert busy.index(">small<") < busy.index(">large<")
    assert "large" in root.get(f"{OWNERS}/team-a").text
    part = root.get(f"{ADMIN}/adapters", headers={"hx-request": "true"}).text
    assert "<html" not in part and "large" in part


def test_while_adapters_are_counted_the_page_says_so(
    serve: Serve, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.adapters.adapter_census._PATIENCE_S", 0.0)

    def slow() -> list[str]:
        time.sleep(0.3)
        return []

    monkeypatch.setattr(store, "owners", slow)
    running = serve()
    page = running.http.get(f"{ADMIN}/adapters").text
    assert "Being counted" in page and "every 2s" in page
    assert eventually(lambda: "No adapters" in running.http.get(f"{ADMIN}/adapters").text)


def test_the_audit_trail_is_filtered_by_its_address(root: httpx.Client, team: Services) -> None:
    key, _ = team.tenants.keys.create("team-a", ODD, by=SERVER_ADMIN, scopes=["files"])
    root.post(f"/console/keys/{key.id}?owner=team-a", data={"scopes": ["files", "jobs"]})
    here = f"{ADMIN}/audit"
    whole = root.get(here).text
    assert "project.created" in whole and "<del>files</del>" in whole
    assert "<ins>files, jobs</ins>" in whole and ODD not in whole
    today = time.strftime("%Y-%m-%d", time.gmtime())
    shown = {"action": "api_key.updated", "owner": "team-a", "actor": "server", "thing": key.id}
    for query in ({"action": "api_key.updated"}, shown, shown | {"from": today, "to": today}):
        page = root.get(here, params=query).text
        assert "<ins>files, jobs</ins>" in page and '<th scope="row">project.created' not in page
        assert f'value="{query["action"]}"' in page
    for query in ({"owner": "nobody"}, {"to": "2020-01-01"}, {"actor": "x@y.z"}, {"thing": ODD}):
        page = root.get(here, params=query).text
        assert "Nothing was changed that fits" in page and ODD not in page
    for query in ({"from": "soon"}, {"to": "2026-13-01"}, {"owner": "x" * 300}, {"after": "x"}):
        assert root.get(here, params=query).status_code == 400
    for number in range(55):
        team.tenants.owners.create(f"o-{number}")
    page = root.get(f"{here}?action=project.created").text
    more = re.search(r'class="more"><a class="button" href="([^"]+)"', page)
    assert more is not None
    rest = root.get(unescape(more[1])).text
    assert "team-a" in rest and "o-54" not in rest and "api_key" not in rest.split("<tbody>")[1]


def test_admin_keys_are_made_and_revoked(root: httpx.Client, keyed: Running) -> None:
    here = f"{ADMIN}/keys"
    page = root.post(here, data={"name": ODD, "life": "3600"}).text
    value = re.search(r'id="key-value">([^<]+)<', page)
    assert value is not None and ODD not in page
    header = {"authorization": f"Bearer {value[1]}"}
    listed = "/v1/organization/admin_api_keys"
    (key,) = keyed.http.get(listed, headers=header).json()["data"]
    assert (key["name"], key["expires_at"] - key["created_at"]) == (ODD, 3600)
    shown = root.get(here).text
    assert "&lt;script&gt;" in shown and value[1] not in shown
    assert root.post(f"{here}/{key['id']}/revoke").headers["location"] == here
    keyed.services.keys.refresh()
    assert keyed.http.get(listed, headers=header).status_code == 401
    assert root.post(f"{here}/{key['id']}/revoke").status_code == 404


def test_ten_thousand_owners_make_no_page_slow(root: httpx.Client, keyed: Running) -> None:
    with keyed.services.tenants.keys._database.transaction() as session:
        session.add_all(
            OwnerRow(id=f"o{n:05}", name=f"O {n}", folded=f"o {n}", status="active", created_at=1)
            for n in range(10_000)
        )
    for path in (OWNERS, f"{OWNERS}?search=9999", f"{OWNERS}/o00001", f"{ADMIN}/usage"):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            assert root.get(path).status_code == 200
            times.append(time.perf_counter() - began)
        assert min(times) < 0.1, path
