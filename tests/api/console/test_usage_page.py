"""The page of usage: the numbers that the API tells, drawn and as CSV, and the limits beside."""

import csv
import io
import re
import time

import pytest

from server.__main__ import main
from server.console.watching.limit_rows import limit_rows
from server.console.watching.usage_bars import Series, stacked
from server.db.usage_rows import HOUR_S, UsageKey
from server.tenancy.principal import SERVER_ADMIN
from server.tenancy.usage.usage_book import DAY_S
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Publish, Running

NOW = int(time.time()) // HOUR_S * HOUR_S
EVIL = """<script>alert("1")</script>'"""


def use(server: Running, *used: tuple[int, UsageKey, dict[str, int]]) -> None:
    counted = {(start, key): counts for start, key, counts in used}
    server.services.tenants.usage.add(f"w{time.monotonic_ns()}", 1, counted)


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the rows of the table below a heading."""
    table = page.split(title, 1)[1].split("<tbody>", 1)[1].split("</table>", 1)[0]
    texts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in table.split("</tr>")]
    return [[" ".join(re.sub("<[^>]+>", " ", it).split()) for it in row] for row in texts if row]


def test_an_owner_without_usage_is_told_what_to_do(server: Running) -> None:
    page = server.http.get("/console/usage").text
    assert "Nothing was used in the last 7 days" in page
    assert 'href="/console/compare"' in page


def test_sums_are_those_of_the_api(server: Running) -> None:
    counts = {"requests": 3, "prompt": 1_234, "cached": 34, "completion": 56, "training": 7}
    use(
        server,
        (NOW, UsageKey("default", "", "", "pirate"), counts),
        (NOW - DAY_S, UsageKey("default", "", "", "pirate"), counts),
        (NOW - 20 * DAY_S, UsageKey("default", "", "", "pirate"), counts),
        (NOW, UsageKey("default", "", "", "base"), {"requests": 1, "prompt": 1}),
        (NOW, UsageKey("default"), {"refusals": 12}),
    )
    page = server.http.get("/console/usage?period=7d").text
    assert rows(page, '<h2 id="groups">') == [
        ["pirate", "6", "0", "2,468", "68", "112", "14"],
        ["base", "1", "0", "1", "0", "0", "0"],
        ["refused before a model was asked", "0", "12", "0", "0", "0", "0"],
        ["All together", "7", "12", "2,469", "68", "112", "14"],
    ]
    days = rows(page, "From (UTC)")
    assert len(days) == 7 and [day[1] for day in days][:3] == ["4", "3", "0"], "the newest first"
    month = server.http.get("/console/usage?period=30d").text
    assert rows(month, '<h2 id="groups">')[0][1] == "9" and len(rows(month, "From (UTC)")) == 30
    assert len(rows(server.http.get("/console/usage?period=24h").text, "From (UTC)")) == 24
    assert "63.2% of all" in page and "3% cached" in page


def test_bars_say_their_numbers(server: Running) -> None:
    for number in range(12):
        key = UsageKey("default", "", "", f"m{number:02}")
        use(server, (NOW, key, {"requests": 1, "prompt": 100 - number}))
    use(server, (NOW, UsageKey("default"), {"refusals": 2}))
    page = server.http.get("/console/usage?period=24h").text
    told = re.findall(r"<title>([^<]*m00[^<]*)</title>", page)
    assert len(told) == 2
    assert "m00: 1, m01: 1" in told[0] and "others: 4, refused: 2" in told[0]
    assert "m08" not in told[0], "eight have a colour"
    assert page.count("<g>") == 2 * 24


def test_keys_have_their_names(browser: Browser, make_key: MakeKey, keyed: Running) -> None:
    make_key("team-a", "models.use")
    key, _ = keyed.services.tenants.keys.create("team-a", EVIL[:60], by=SERVER_ADMIN)
    use(keyed, (NOW, UsageKey("team-a", key.id, "", "base"), {"requests": 2}))
    use(keyed, (NOW, UsageKey("team-a", "key_gone", "", "base"), {"requests": 1}))
    page = browser(SERVER_KEY).get("/console/usage?by=key").text
    assert "&lt;script&gt;" in page and "<script>alert" not in page
    assert "key_gone" in page, "a key that is no more has its id"


def test_an_owner_sees_its_own_alone(browser: Browser, make_key: MakeKey, keyed: Running) -> None:
    ann = browser(make_key("team-a", "usage.read"))
    make_key("team-b", "models.use")
    use(keyed, (NOW, UsageKey("team-a", "key_1", "", "mine"), {"requests": 1}))
    use(keyed, (NOW, UsageKey("team-b", "key_2", "", "secret"), {"requests": 777}))
    for query in ("", "?by=key", "?owner=team-a", "?period=30d"):
        page = ann.get(f"/console/usage{query}").text
        assert "secret" not in page and "777" not in page and "team-b" not in page, query
    assert "mine" in ann.get("/console/usage").text
    assert ann.get("/console/usage?by=owner").status_code == 400
    for path in ("/console/usage", "/console/usage/csv", "/console/usage/limits"):
        theirs, nobodys = (ann.get(path, params={"owner": it}) for it in ("team-b", "team-z"))
        assert (theirs.status_code, nobodys.status_code) == (404, 404)
        assert theirs.text == nobodys.text.replace("team-z", "team-b"), "the same words"
    assert "secret" not in ann.get("/console/usage/csv").text
    admin = browser(SERVER_KEY)
    assert "secret" in admin.get("/console/usage").text
    assert "mine" not in admin.get("/console/usage?owner=team-b").text
    assert admin.get("/console/usage?owner=team-z").status_code == 404
    assert admin.get("/console/usage/limits?owner=team-z").status_code == 404
    assert '<option value="team-b">' in admin.get("/console/usage").text


@pytest.mark.parametrize("path", ["/console/usage", "/console/usage/csv", "/console/usage/limits"])
def test_it_needs_the_scope(browser: Browser, make_key: MakeKey, path: str) -> None:
    assert browser(make_key("team-a", "models.use", "jobs")).get(path).status_code == 403
    assert browser(None).get(path).status_code == 303


@pytest.mark.parametrize("query", ["period=1y", f"period={EVIL}", "by=colour", f"by={EVIL}"])
@pytest.mark.parametrize("path", ["/console/usage", "/console/usage/csv"])
def test_a_wrong_choice_is_told(server: Running, path: str, query: str) -> None:
    page = server.http.get(f"{path}?{query}")
    assert page.status_code == 400 and "is not one of" in page.text
    assert "<script>alert" not in page.text


@pytest.mark.parametrize("name", [EVIL, "a/b", "x" * 255, "émoji 🏴"])
def test_names_are_escaped_and_cut_by_nobody(server: Running, name: str) -> None:
    use(server, (NOW, UsageKey("default", name[:60], "", name), {"requests": 1}))
    for by in ("model", "key"):
        page = server.http.get(f"/console/usage?by={by}")
        assert page.status_code == 200 and "<script>alert" not in page.text


def test_the_csv_is_the_commands(
    browser: Browser,
    make_key: MakeKey,
    keyed: Running,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_key("team-a", "models.use")
    for number in range(40):
        key = UsageKey("team-a", f"key_{number % 3}", "", f"m{number}")
        use(keyed, (NOW - number * HOUR_S, key, {"requests": number, "prompt": 9, "refusals": 1}))
    monkeypatch.setenv("VERANDAH_API_KEY", SERVER_KEY)
    me = browser(SERVER_KEY)
    for query, options in (
        ("period=7d&by=owner", ["--by", "owner"]),
        ("period=30d&by=model", ["--days", "30", "--by", "owner,model"]),
        ("period=7d&by=key&owner=team-a", ["--owner", "team-a", "--by", "key"]),
    ):
        assert main(["usage", "--csv", *options, "--url", keyed.url]) == 0
        answer = me.get(f"/console/usage/csv?{query}")
        assert answer.text == capsys.readouterr().out
        assert answer.headers["content-type"].startswith("text/csv")
        assert "attachment" in answer.headers["content-disposition"]
        assert sum(int(row["requests"]) for row in csv.DictReader(io.StringIO(answer.text))) > 0


def test_the_csv_has_all_pages(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.tenancy.usage.usage_book.MOST_RESULTS", 7)
    for number in range(30):
        use(server, (NOW, UsageKey("default", "", "", f"m{number:02}"), {"requests": 1}))
    lines = server.http.get("/console/usage/csv").text.splitlines()
    assert len(lines) == 31 and len(set(lines)) == 31
    page = server.http.get("/console/usage").text
    assert len(rows(page, '<h2 id="groups">')) == 26 and "The CSV has all" in page


def test_a_link_leads_to_the_same_choice(server: Running) -> None:
    use(server, (NOW, UsageKey("default", "", "", "pirate"), {"requests": 1}))
    page = server.http.get("/console/usage?period=30d&by=key&owner=default").text
    assert "/console/usage/csv?period=30d&amp;by=key&amp;owner=default" in page
    assert '<a href="/console/usage?period=24h&amp;by=key&amp;owner=default">' in page
    assert page.count('aria-current="true"') == 2


def test_limits_are_beside_what_is_used(
    browser: Browser, make_key: MakeKey, keyed: Running, publish: Publish
) -> None:
    ann = browser(make_key("team-a", "usage.read"))
    services = keyed.services
    services.tenants.limits.change("team-a", {"files": 2, "adapters": 4, "stored_bytes": 10**9})
    publish("pirate", "team-a")
    for _ in range(2):
        services.files.create("team-a", "x.jsonl", "fine-tune", io.BytesIO(b"{}\n"))
    for page in (
        ann.get("/console/usage/limits").text,
        ann.get("/console/usage/limits", headers={"hx-request": "true"}).text,
        browser(SERVER_KEY).get("/console/usage/limits?owner=team-a").text,
    ):
        told = {row[0]: row[1:] for row in rows(page, "Used now")}
        assert told["Files"] == ["2", "2", "100% 100% used up"]
        assert told["Adapters"] == ["1", "4", "25% 25%"]
        assert told["Bytes of files and adapters"][1] == "1.0 GB"
        assert told["Jobs that train"] == ["0", "no limit", ""]
    assert "<html" not in ann.get("/console/usage/limits", headers={"hx-request": "true"}).text


def test_rows_of_limits() -> None:
    document = {
        "limits": [
            {"name": "requests_a_minute", "limit": 100, "used": 85},
            {"name": "new_limit", "limit": 100, "used": None},
            {"name": "files", "limit": 3, "used": 9},
        ]
    }
    near, unknown, over = limit_rows(document)
    assert (near.state, near.share) == ("nearly used up", 0.85)
    assert (unknown.label, unknown.used, unknown.share) == ("new limit", "not counted", None)
    assert over.state == "used up"


def test_it_is_quick_with_many_models(server: Running) -> None:
    key, counts = UsageKey("default", "", "", ""), {"requests": 1, "prompt": 5}
    use(
        server,
        *(
            (NOW - day * DAY_S, UsageKey(key.owner, "", "", f"m{number}"), counts)
            for day in range(10)
            for number in range(1_000)
        ),
    )
    server.http.get("/console/usage?period=30d")
    times = []
    for _ in range(5):
        began = time.process_time()  # others use the cores too
        page = server.http.get("/console/usage?period=30d")
        times.append(time.process_time() - began)
    assert "10,000" in page.text
    assert min(times) < 0.2
    assert len(page.content) < 120_000


def test_bars_are_stacked_to_their_sum() -> None:
    bars = stacked(["a", "b"], [Series("x", "l1", [30, 0]), Series("y", "l2", [20, 0])])
    assert bars.most == 50
    first, second = bars.bars
    assert [(part.look, part.y, part.height) for part in first.parts] == [
        ("l1", 40.0, 60.0),
        ("l2", 0.0, 40.0),
    ]
    assert (second.parts, second.told) == ([], "b: nothing")
    assert first.told == "a: x: 30, y: 20"
    assert second.x + bars.bar_width == bars.width
    assert stacked([], []).bars == []


@pytest.mark.parametrize(
    ("largest", "top"), [(0, 4), (3, 4), (5, 5), (9, 10), (11, 20), (1001, 2000), (10**9, 10**9)]
)
def test_the_scale_ends_at_a_round_number(largest: int, top: int) -> None:
    assert stacked(["a"], [Series("x", "l", [largest])]).most == top
