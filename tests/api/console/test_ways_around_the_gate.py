"""Ways around the console's gate: odd paths, methods, cookies, names and links open nothing."""

import asyncio
import socket
from urllib.parse import quote, urlsplit

import pytest

from server.console.console_gate import ROOT
from server.db.tenancy_tables import OwnerRow
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Host, Running

SIGN_IN = "/console/sign-in"
PROJECTS = "/console/v1/organization/projects"
ELSEWHERE = (
    "/console/../docs",
    "/console/%2e%2e/docs",
    "/console/%2E./docs",
    "/console/..%2f..%2fdocs",
    "/console\\..\\docs",
    "/console/\t/evil.example",
    "/console@evil.example",
    "https:/console",
    "https:console",
    "///console/",
    "javascript:alert(1)//console",
    "/console/sign-in",
    "/console/sign-in?next=/console/sign-in",
    "/console/" + "x" * 3000,
    "/console/é",
    "/console\r\nset-cookie: a=b",
    " /console/jobs",
)
ODD_COOKIES = (
    "",
    "wrong",
    '"',
    '"\\012"',
    '"\\303\\251"',
    '"a\\"b"',
    "a b",
    "\xe9",
    "\xff" * 100,
    "vr-" + "x" * 49,
    "x" * 4000,
    f"{SERVER_KEY}x",
    f" {SERVER_KEY[:-1]}",
    "Bearer",
    "=",
    "{}",
)
ODD_PATHS = (
    "/console/v1/models",
    "/console/v1/../v1/models",
    "/console/v1//models",
    "/console//v1/models",
    "//console/v1/models",
    "/console/./v1/models",
    "/console%2fv1%2fmodels",
    "/console%2Fjobs",
    "/%63onsole/v1/models",
    "/console/v1/%2e%2e/v1/models",
    "/console/%2e%2e/v1/models",
    "/console/sign-in/../v1/models",
    "/console/sign-in/%2e%2e/v1/models",
    "/console/sign-in/v1/models",
    "/console/sign-inx",
    "/console/sign-in%2f..%2fv1/models",
    "/console/static/../v1/models",
    "/console/static/%2e%2e/%2e%2e/console_gate.py",
    "/console/static/../console_gate.py",
    "/console/static/..%2fconsole_gate.py",
    "/console/static/%5c..%5cconsole_gate.py",
    "/console/static//etc/passwd",
    "/console;/v1/models",
    "/console/v1/models;.css",
    "/console/jobs/.css",
    "/console%00",
    "/CONSOLE/v1/models",
    "/console/%ff%fe",
)


def asked(
    running: Running, target: str, *lines: str, method: str = "GET", body: str = ""
) -> tuple[int, dict[str, str], str]:
    """Send a request as it stands: clients would tidy the path and the headers."""
    place = urlsplit(running.url)
    assert place.hostname and place.port
    if not any(line.lower().startswith("host:") for line in lines):
        lines = (f"Host: {place.netloc}", *lines)
    head = [f"{method} {target} HTTP/1.1", *lines, "Connection: close"]
    head.append(f"Content-Length: {len(body)}")
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(("\r\n".join(head) + "\r\n\r\n" + body).encode("latin-1"))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    first, _, text = answer.decode("latin-1").partition("\r\n\r\n")
    status, *headers = first.split("\r\n")
    pairs = [line.split(": ", 1) for line in headers]
    named = {name.lower(): value for name, value in pairs}
    return int(status.split()[1]), named, text


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_odd_path_opens_anything(keyed: Running, method: str) -> None:
    for path in ODD_PATHS:
        status, headers, text = asked(keyed, path, "Sec-Fetch-Site: same-origin", method=method)
        if status == 303:
            assert headers["location"].startswith(SIGN_IN)
        else:
            assert status in (401, 404)
        assert "class ConsoleGate" not in text and "root:" not in text
        assert '"owned_by"' not in text


@pytest.mark.parametrize("path", ["/console", "/console/v1/models", "/console/static/mark.svg"])
def test_no_other_method_of_another_site_passes(keyed: Running, path: str) -> None:
    foreign = ("Origin: https://evil.example", "Sec-Fetch-Site: cross-site")
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "FOO"):
        status, headers, _ = asked(keyed, path, *foreign, method=method)
        assert status in (400, 403, 405), method
        assert "access-control-allow-origin" not in headers


def test_a_preflight_gets_nothing(keyed: Running) -> None:
    wanted = ("Origin: https://evil.example", "Access-Control-Request-Method: POST")
    status, headers, _ = asked(keyed, "/console/v1/files", *wanted, method="OPTIONS")
    assert status == 403 and not any(name.startswith("access-control") for name in headers)


def test_a_websocket_is_closed(keyed: Running, host: Host) -> None:
    """No page has one, so the application closes it, whatever cookie it brings."""
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(str(message["type"]))

    cookie = (b"cookie", f"verandah_console_80={SERVER_KEY}".encode())
    scope = {
        "type": "websocket",
        "path": "/console/v1/chat/completions",
        "headers": [cookie],
        "query_string": b"",
        "subprotocols": [],
    }
    assert host.app is not None
    asyncio.run(host.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent == ["websocket.close"]


def test_no_odd_cookie_is_a_key(keyed: Running) -> None:
    for value in ODD_COOKIES:
        name = cookie_name(keyed)
        status, _, _ = asked(keyed, "/console/v1/models", f"Cookie: {name}={value}")
        assert status == 401
        status, headers, _ = asked(keyed, "/console/jobs", f"Cookie: {name}={value}")
        assert (status, headers["location"]) == (303, f"{SIGN_IN}?next=%2Fconsole%2Fjobs")


def cookie_name(running: Running) -> str:
    return f"verandah_console_{urlsplit(running.url).port}"


def test_a_key_is_found_among_other_cookies(keyed: Running) -> None:
    cookies = f"Cookie: a=b; ;=;c; {cookie_name(keyed)}={SERVER_KEY}; d"
    assert asked(keyed, "/console/v1/models", cookies)[0] == 200
    name, wrong = cookie_name(keyed), "Cookie: x=y"
    assert asked(keyed, "/console/v1/models", wrong, f"X: {name}={SERVER_KEY}")[0] == 401


def test_over_tls_nobody_but_this_host_sets_the_cookie(keyed: Running) -> None:
    """A neighbouring site, or somebody on the line, can set a cookie without the prefix, and would
    have people work with a key of theirs."""
    host = "Host: verandah.example"
    for foreign in ("verandah_console", "verandah_console_80", "__Secure-verandah_console"):
        assert asked(keyed, "/console/v1/models", host, f"Cookie: {foreign}={SERVER_KEY}")[0] == 401
    own = f"Cookie: __Host-verandah_console={SERVER_KEY}; verandah_console_80=wrong"
    assert asked(keyed, "/console/v1/models", host, own)[0] == 200


def test_the_secure_cookie_is_of_this_host_alone(browser: Browser, keyed: Running) -> None:
    headers = {"origin": f"https://{urlsplit(keyed.url).netloc}"}
    said = browser(None).post(SIGN_IN, data={"key": SERVER_KEY}, headers=headers)
    flags = {part.strip().lower() for part in said.headers["set-cookie"].split(";")[1:]}
    assert flags == {"httponly", "path=/", "samesite=strict", "secure"}


def test_servers_of_one_machine_do_not_sign_each_other_out(keyed: Running) -> None:
    name, other = cookie_name(keyed), "verandah_console_1"
    cookies = f"Cookie: {name}={SERVER_KEY}; {other}=vr-{'x' * 49}"
    assert asked(keyed, "/console", cookies)[0] == 200


def test_without_keys_a_cookie_of_another_server_is_none(server: Running) -> None:
    """It would be refused, and the sign-in leads back: the browser would go in a circle."""
    cookie = f"Cookie: {cookie_name(server)}=vr-{'x' * 49}"
    assert asked(server, "/console", cookie)[0] == 200
    assert asked(server, "/console/v1/models", cookie)[0] == 200


def test_the_api_sees_neither_cookies_nor_a_pages_own_key(
    keyed: Running, make_key: MakeKey
) -> None:
    weak = make_key("team-a", "models.use")
    mine = f"Cookie: {cookie_name(keyed)}={weak}"
    strong = f"Authorization: Bearer {SERVER_KEY}"
    assert asked(keyed, "/console/v1/files", mine, strong)[0] == 403
    assert asked(keyed, "/console/v1/files", strong, mine)[0] == 403
    assert asked(keyed, "/console", strong)[0] == 303


@pytest.mark.parametrize("keys", ["keyed", "server"])
def test_an_odd_name_of_the_server_is_no_fault_of_it(
    request: pytest.FixtureRequest, keys: str
) -> None:
    running: Running = request.getfixturevalue(keys)
    for host in ("[", "]", "a b", "[::1", "127.0.0.1:x", "127.0.0.1:999999", "%", "\xe9"):
        for path in ("/console", SIGN_IN, "/console/v1/models"):
            for method in ("GET", "POST"):
                assert asked(running, path, f"Host: {host}", method=method)[0] < 500, (host, path)


def test_an_odd_origin_changes_nothing(keyed: Running) -> None:
    cookie = f"Cookie: {cookie_name(keyed)}={SERVER_KEY}"
    before = owners(keyed)
    for origin in (
        "http://[",
        "http://",
        "https://",
        "null",
        "",
        "//",
        "http://127.0.0.1",
        "x" * 2000,
    ):
        lines = (cookie, f"Origin: {origin}", "Content-Type: application/json")
        status, _, _ = asked(keyed, PROJECTS, *lines, method="POST", body='{"name": "team-x"}')
        assert (status, owners(keyed)) == (403, before), origin


def owners(running: Running) -> list[str]:
    with running.services.tenants.keys._database.reading() as session:
        return [row.id for row in session.query(OwnerRow)]


def test_another_site_signs_nobody_in_or_out(keyed: Running) -> None:
    """In with a key of its own it could watch what people do."""
    for path in (SIGN_IN, f"{SIGN_IN}/out"):
        for site in ("cross-site", "same-site", "none"):
            headers = {"sec-fetch-site": site}
            answer = keyed.http.post(path, data={"key": SERVER_KEY}, headers=headers)
            assert answer.status_code == 403 and "set-cookie" not in answer.headers


def test_next_leads_nowhere_else(browser: Browser) -> None:
    for elsewhere in ELSEWHERE:
        nobody = browser(None)
        answer = nobody.post(SIGN_IN, data={"key": SERVER_KEY, "next": elsewhere})
        assert answer.headers["location"] == ROOT
        page = nobody.get(f"{SIGN_IN}?next={quote(elsewhere, safe='')}").text
        assert f'name="next" value="{ROOT}"' in page


@pytest.mark.parametrize("path", ["/console/a?b", "/console/a#b", "/console/a b", "/console/ä"])
def test_the_way_back_is_the_page_that_was_asked_for(browser: Browser, path: str) -> None:
    nobody = browser(None)
    target = quote(path, safe="/") + "?c=%26"
    led = nobody.get(target).headers["location"]
    page = nobody.get(led).text
    assert f'name="next" value="{target}"' in page


@pytest.mark.parametrize("key", [None, SERVER_KEY])
@pytest.mark.parametrize(
    "path", ["/console", "/console/v1/models", SIGN_IN, "/console/x", "/console/static/x.js?v=1"]
)
def test_nothing_but_static_files_is_kept(browser: Browser, key: str | None, path: str) -> None:
    answer = browser(key).get(path)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_wrong_key_says_no_more_here_than_at_the_api(
    browser: Browser, make_key: MakeKey, keyed: Running
) -> None:
    key = make_key("team-a", "models.use")
    nobody = browser(None)
    for wrong in (SERVER_KEY[:-1], key[:-1], key + "x", key[:-1] + "_"):
        shown = nobody.post(SIGN_IN, data={"key": wrong})
        told = keyed.http.get("/v1/models", headers={"authorization": f"Bearer {wrong}"})
        assert (shown.status_code, told.status_code) == (401, 401)
        assert told.json()["error"]["message"] in shown.text
        assert wrong not in shown.text
