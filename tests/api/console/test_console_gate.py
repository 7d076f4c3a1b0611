"""A browser's key opens the console and what its scripts ask; nothing else of the browser does."""

import json
import time

import httpx
import pytest

from server.console.console_gate import ROOT
from server.tenancy.principal import DEFAULT_OWNER
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Running, Serve

MADE = {"name": "team-x"}


def test_without_a_key_the_way_leads_to_the_sign_in_and_back(browser: Browser) -> None:
    nobody = browser(None)
    answer = nobody.get("/console/jobs?after=ftjob-1")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/console/sign-in?next=%2Fconsole%2Fjobs%3Fafter%3Dftjob-1"
    page = nobody.get(answer.headers["location"])
    assert page.status_code == 200
    assert 'value="/console/jobs?after=ftjob-1"' in page.text
    form = {"key": SERVER_KEY, "next": "/console/jobs?after=ftjob-1"}
    assert nobody.post("/console/sign-in", data=form).headers["location"] == form["next"]


def test_part_of_a_page_leads_the_whole_page_to_the_sign_in(browser: Browser) -> None:
    answer = browser(None).get("/console/jobs", headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (204, "/console/sign-in")


@pytest.mark.parametrize("key", ["", "wrong", "vk-" + "x" * 40, "é", "a\x00b", "x" * 600])
def test_a_wrong_key_is_told_and_not_kept(browser: Browser, key: str) -> None:
    answer = browser(None).post("/console/sign-in", data={"key": key})
    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example",
        "//evil.example",
        "/console/..//evil",
        "/docs",
        "\\\\evil",
        "/consolex",
    ],
)
def test_the_sign_in_leads_to_no_other_place(browser: Browser, elsewhere: str) -> None:
    form = {"key": SERVER_KEY, "next": elsewhere}
    answer = browser(None).post("/console/sign-in", data=form)
    led = answer.headers["location"]
    assert led == ROOT or (led == elsewhere and elsewhere.startswith("/console/"))


def test_the_cookie_is_the_strictest(browser: Browser) -> None:
    said = browser(None).post("/console/sign-in", data={"key": SERVER_KEY}).headers["set-cookie"]
    flags = {part.strip().lower() for part in said.split(";")[1:]}
    assert flags == {"httponly", "path=/console", "samesite=strict"}


def test_over_tls_the_cookie_stays_there(browser: Browser, keyed: Running) -> None:
    host = keyed.url.removeprefix("http://")
    headers = {"origin": f"https://{host}"}
    answer = browser(None).post("/console/sign-in", data={"key": SERVER_KEY}, headers=headers)
    assert answer.headers["set-cookie"].startswith("__Host-verandah_console=")
    assert "; Secure" in answer.headers["set-cookie"]


def test_a_key_is_not_taken_over_a_line_that_others_read(browser: Browser) -> None:
    headers = {"host": "gpu.example:8000", "origin": "http://gpu.example:8000"}
    answer = browser(None).post("/console/sign-in", data={"key": SERVER_KEY}, headers=headers)
    assert answer.status_code == 403
    assert "TLS" in answer.text
    assert "set-cookie" not in answer.headers


def test_signing_out_forgets_the_key(browser: Browser) -> None:
    me = browser(SERVER_KEY)
    assert me.get("/console").status_code == 200
    assert me.post("/console/sign-in/out").headers["location"] == "/console/sign-in"
    assert me.get("/console").status_code == 303


def test_the_api_takes_no_cookie(browser: Browser) -> None:
    me = browser(SERVER_KEY)
    for cookie in me.cookies.jar:
        cookie.path = "/"
    assert me.get("/v1/models").status_code == 401
    assert me.get("/console/v1/models").status_code == 200


def test_the_scripts_api_is_the_api(browser: Browser, make_key: MakeKey, keyed: Running) -> None:
    ann = browser(make_key("team-a", "models.use"))
    assert (
        ann.get("/console/v1/models").json()
        == keyed.http.get(
            "/v1/models", headers={"authorization": f"Bearer {make_key('team-a', 'models.use')}"}
        ).json()
    )
    refused = ann.get("/console/v1/files")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    nobody = browser(None).get("/console/v1/models")
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")
    assert ann.get("/console/v1/no-such").json()["error"]["code"] == "unknown_url"


def test_a_page_cannot_bring_a_key_of_its_own(browser: Browser) -> None:
    header = {"authorization": f"Bearer {SERVER_KEY}"}
    assert browser(None).get("/console/v1/models", headers=header).status_code == 401


def test_a_revoked_key_is_refused_at_once(
    browser: Browser, make_key: MakeKey, keyed: Running
) -> None:
    ann = browser(make_key("team-a", "models.use"))
    assert ann.get("/console").status_code == 200
    book = keyed.services.tenants.keys
    book.revoke("team-a", book.list("team-a", limit=1)[0][0].id)
    keyed.services.keys.refresh()
    assert ann.get("/console").status_code == 303


@pytest.mark.parametrize("path", ["/console/v1/organization/projects", "/console/sign-in/out"])
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site", "origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {},
    ],
)
def test_another_sites_page_changes_nothing(
    browser: Browser, keyed: Running, path: str, headers: dict[str, str]
) -> None:
    me = browser(SERVER_KEY)
    del me.headers["sec-fetch-site"]
    before = keyed.services.tenants.owners.list(limit=100)[0]
    answer = me.post(path, json=MADE, headers=headers)
    assert answer.status_code == 403
    assert keyed.services.tenants.owners.list(limit=100)[0] == before
    assert me.get("/console", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_a_browser_that_names_its_origin_alone_may_change_things(
    browser: Browser, keyed: Running
) -> None:
    me = browser(SERVER_KEY)
    del me.headers["sec-fetch-site"]
    answer = me.post("/console/v1/organization/projects", json=MADE, headers={"origin": keyed.url})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("mode", ["cors", "no-cors"])
def test_another_site_reads_nothing(browser: Browser, mode: str) -> None:
    me = browser(SERVER_KEY)
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
    assert me.get("/console/v1/models", headers=headers).status_code == 403
    assert me.get("/console", headers=headers | {"sec-fetch-mode": "navigate"}).status_code == 200


def test_a_link_of_another_site_is_followed_with_the_cookie(browser: Browser) -> None:
    """The browser leaves the strict cookie out of the first request, and sends it with the next."""
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    answer = browser(None).get('/console/jobs?after="', headers=headers)
    assert answer.status_code == 200
    assert 'content="0; url=/console/jobs?after=%22"' in answer.text
    assert browser(None).get("/console/jobs").status_code == 303


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil"])
def test_without_a_key_another_name_of_this_machine_opens_nothing(
    server: Running, name: str
) -> None:
    answer = server.http.get("/console", headers={"host": name})
    assert answer.status_code == 403
    assert "127.0.0.1" in answer.text
    assert server.http.get("/console").status_code == 200


@pytest.mark.parametrize(
    "path", ["/console", "/console/sign-in", "/console/nothing", "/console/v1/x"]
)
def test_every_answer_has_the_policy(browser: Browser, path: str) -> None:
    headers = browser(SERVER_KEY).get(path).headers
    assert headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:;"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_an_unknown_page_is_a_page(browser: Browser) -> None:
    answer = browser(SERVER_KEY).get("/console/<script>")
    assert answer.status_code == 404
    assert "&lt;script&gt;" in answer.text
    assert "<script>" not in answer.text


def test_what_a_key_may_not_do_is_not_offered(browser: Browser, make_key: MakeKey) -> None:
    ann = browser(make_key("team-a", "models.use")).get("/console").text
    assert 'href="/console/compare"' in ann
    assert 'href="/console/data"' not in ann
    assert 'href="/console/admin"' not in ann
    assert "team-a" in ann
    assert DEFAULT_OWNER not in ann


def test_a_page_is_quick(server: Running) -> None:
    server.http.get("/console")
    times = []
    for _ in range(5):
        began = time.perf_counter()
        server.http.get("/console")
        times.append(time.perf_counter() - began)
    assert min(times) < 0.1


def test_a_form_of_another_shape_is_a_page_too(browser: Browser) -> None:
    answer = browser(None).post("/console/sign-in", json={"key": SERVER_KEY})
    assert answer.status_code in (400, 401)
    assert answer.headers["content-type"].startswith("text/html")


def test_serving_without_a_key_needs_no_sign_in(serve: Serve) -> None:
    running = serve()
    assert running.http.get("/console/sign-in").headers["location"] == ROOT
    me = httpx.post(
        f"{running.url}/console/v1/organization/projects",
        content=json.dumps(MADE),
        headers={"content-type": "application/json", "origin": running.url},
    )
    assert me.status_code == 200
