"""The list of adapters, and what the API was given for it."""

import os
import time
from urllib.parse import unquote

import pytest

from adapters_store.store import AdapterStore
from server.tenancy.principal import DEFAULT_OWNER, SERVER_ADMIN
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Publish, Running


def names(page: str) -> list[str]:
    """The adapters in the table, in their order."""
    links = page.split('<th scope="row"><a href="/console/adapters/')[1:]
    return [unquote(link.split('"')[0]) for link in links]


@pytest.fixture
def many(publish: Publish, store: AdapterStore) -> int:
    """10,000 adapters. Only the first 150 have files, since making those takes long: no other is
    opened here."""
    ref = publish("a-000")
    home = store.path(ref).parent.parent.parent
    for number in range(1, 10_000):
        if number >= 150:
            (home / f"user-{number}").mkdir()
            continue
        folder = home / f"a-{number:03}" / "1"
        folder.mkdir(parents=True)
        os.link(store.path(ref), folder / store.path(ref).name)
        os.link(home / "a-000" / "latest", folder.parent / "latest")
    return 10_000


def test_who_has_none_is_led_to_data(server: Running) -> None:
    page = server.http.get("/console/adapters").text
    assert "No adapters yet" in page
    assert 'href="/console/data"' in page
    assert "<table" not in page


def test_each_has_its_line(server: Running, publish: Publish) -> None:
    publish("pirate")
    ref = publish("pirate")
    server.services.residency.pin(ref)
    publish("butler")
    shares = server.services.tenants.shares
    server.services.tenants.owners.create("team-b")
    shares.give(DEFAULT_OWNER, "pirate", "team-b", "use", by=SERVER_ADMIN)
    page = server.http.get("/console/adapters").text
    assert names(page) == ["butler", "pirate"]
    assert "2 adapters" in page
    pirate = page.split("/console/adapters/pirate")[1].split("</tr>")[0]
    for told in ("@2", "2 in all", "VeRA", "rank 4", "on the device", "pinned", "by you", "bytes"):
        assert told in pirate
    assert "by you" not in page.split("/console/adapters/butler")[1].split("</tr>")[0]


def test_those_of_others_come_last_and_tell_what_the_api_tells(
    keyed: Running, browser: Browser, make_key: MakeKey, publish: Publish
) -> None:
    ann = browser(make_key("team-a", "adapters.read"))
    make_key("team-b")
    publish("mine", "team-a")
    publish("pirate", "team-b")
    publish("secret", "team-b")
    shares = keyed.services.tenants.shares
    shares.give("team-b", "pirate", "team-a", "copy", by=SERVER_ADMIN)
    page = ann.get("/console/adapters").text
    assert names(page) == ["mine", "team-b/pirate"]
    assert "to copy" in page and "secret" not in page
    assert "/-/import" not in page, "the key may not write"


def test_found_by_a_part_of_the_name(server: Running, publish: Publish) -> None:
    for name in ("pirate", "Pirate-2", "butler"):
        publish(name)
    found = server.http.get("/console/adapters?contains=RATE")
    assert names(found.text) == ["Pirate-2", "pirate"]
    part = server.http.get("/console/adapters?contains=but", headers={"hx-request": "true"}).text
    assert names(part) == ["butler"] and "<html" not in part
    api = server.http.get("/v1/adapters?contains=rate").json()
    assert [one["id"] for one in api["data"]] == ["Pirate-2", "pirate"] and api["total"] == 2
    behind = server.http.get("/v1/adapters?contains=rate&after=Pirate-2").json()
    assert ([one["id"] for one in behind["data"]], behind["total"]) == (["pirate"], 2)
    nothing = server.http.get("/console/adapters", params={"contains": '<script>"x'}).text
    assert "Nothing found" in nothing and "<script>&#34;" not in nothing
    assert "&lt;script&gt;&#34;x" in nothing and '<script>"x' not in nothing
    assert server.http.get("/console/adapters?contains=" + "x" * 130).status_code == 400


def test_a_page_at_a_time_of_ten_thousand_and_quickly(server: Running, many: int) -> None:
    page = server.http.get("/console/adapters").text
    assert f"{many:,} adapters" in page
    seen = names(page)
    assert len(seen) == 50
    more = page.split('class="more"><a class="button" href="')[1].split('"')[0]
    following = server.http.get(more.replace("&amp;", "&")).text
    assert len(names(following)) == 50 and not {*names(following)} & {*seen}
    assert names(server.http.get("/console/adapters?contains=a-077").text) == ["a-077"]
    for path in ("/console/adapters", more, "/console/adapters?contains=a-0"):
        times = []
        for _ in range(5):
            began = time.process_time()  # of the server's threads, which are in this process
            assert server.http.get(path.replace("&amp;", "&")).status_code == 200
            times.append(time.process_time() - began)
        assert min(times) < 0.1, (path, times)


@pytest.mark.parametrize("path", ["/console/adapters", "/console/adapters/pirate"])
def test_a_key_without_the_scope_sees_none(
    browser: Browser, make_key: MakeKey, publish: Publish, path: str
) -> None:
    publish("pirate", "team-a")
    assert browser(make_key("team-a", "models.use", "jobs")).get(path).status_code == 403
    assert browser(make_key("team-a", "adapters.read")).get(path).status_code == 200


def test_a_damaged_one_does_not_hide_the_others(
    server: Running, publish: Publish, store: AdapterStore
) -> None:
    store.path(publish("broken")).write_bytes(b"<script>")
    publish("pirate")
    page = server.http.get("/console/adapters").text
    assert names(page) == ["broken", "pirate"] and "damaged" in page
    one = server.http.get("/console/adapters/broken")
    assert one.status_code == 200 and "cannot be used" in one.text


def test_the_form_of_an_import_is_the_apis(browser: Browser, make_key: MakeKey) -> None:
    me = browser(SERVER_KEY)
    page = me.get("/console/adapters/-/import").text
    assert 'action="/console/v1/adapters/import"' in page
    for field in ("name", "config", "weights", "torch_era", "half_dtype", "base_dtype"):
        assert f'name="{field}"' in page
    files = {"config": b"{}", "weights": b"w"}
    made = me.post("/console/v1/adapters/import", data={"name": "pirate"}, files=files)
    assert made.json()["id"] == "pirate@1"
    reader = browser(make_key("team-a", "adapters.read"))
    assert reader.get("/console/adapters/-/import").status_code == 403
