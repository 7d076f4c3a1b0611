"""Sign-in by a browser: what it keeps, what it is given, and what a forged return gets."""

from collections.abc import Iterator
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from server.api.app_services import Services
from server.tenancy.keys import Keys
from server.tenancy.sign_in.group_map import GroupMap
from server.tenancy.sign_in.signing_in import Lives, SigningIn, challenge_of
from tests.api.running import Host, Running, Serve
from tests.api.sign_in_fakes import ISSUER, TrustingProvider, begin, come_back

VERIFIER = "v" * 60
PROGRAM = f"?port=0&code_challenge={challenge_of(VERIFIER)}"
KEY = {"authorization": "Bearer the key"}


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def provider() -> TrustingProvider:
    provider = TrustingProvider()
    provider.add("ann", "team-a", email="ann@example.com")
    provider.add("bob", "team-a", "team-b")
    provider.add("root", "admins")
    provider.add("eve")
    return provider


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_server(
    serve: Serve, services: Services, host: Host, provider: TrustingProvider, clock: Clock
) -> Running:
    return served(serve, services, host.url, provider, clock)


def served(
    serve: Serve, services: Services, public_url: str, provider: TrustingProvider, clock: Clock
) -> Running:
    for name in ("a", "b"):
        services.tenants.owners.create(name)
    groups = GroupMap(["team-a=a:member", "team-b=b:admin", "admins=*:admin"])
    signing_in = SigningIn(
        provider,
        services.tenants.keys._database,
        groups,
        public_url,
        Lives(session_s=3600, key_s=86_400),
        clock=clock,
    )
    return serve(signing_in=signing_in, keys=Keys("the key", services.tenants.keys))


@pytest.fixture
def browser(open_server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=open_server.url, timeout=10) as client:
        yield client


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_browser_signs_in_and_out(browser: httpx.Client) -> None:
    assert error_of(browser.get("/auth/session")) == (401, "invalid_api_key")
    answer = come_back(browser, "ann", "?next=/docs%3Fa=b")
    assert (answer.status_code, answer.headers["location"]) == (303, "/docs?a=b")
    who = browser.get("/auth/session").json()
    assert (who["user"]["name"], who["user"]["email"]) == ("Ann", "ann@example.com")
    assert who["projects"] == [{"id": "a", "role": "member"}]
    kept = dict(browser.cookies)
    assert list(kept) == ["verandah_session"]
    assert browser.post("/auth/logout").headers["location"] == "/"
    assert error_of(browser.get("/auth/session")) == (401, "invalid_api_key")
    stolen = httpx.get(browser.base_url.join("/auth/session"), cookies=kept)
    assert stolen.status_code == 401, "the session has ended, not only its cookie"


def test_each_sign_in_has_a_session_of_its_own(browser: httpx.Client) -> None:
    come_back(browser, "ann")
    first = browser.cookies["verandah_session"]
    come_back(browser, "ann")
    assert browser.cookies["verandah_session"] != first


@pytest.mark.parametrize(
    ("public_url", "name", "secure"),
    [
        ("", "verandah_sign_in", False),
        ("https://verandah.example", "__Host-verandah_sign_in", True),
    ],
)
def test_cookies_are_the_servers_alone(
    serve: Serve,
    services: Services,
    host: Host,
    provider: TrustingProvider,
    clock: Clock,
    public_url: str,
    name: str,
    secure: bool,
) -> None:
    running = served(serve, services, public_url or host.url, provider, clock)
    answer = running.http.get("/auth/login")
    cookie = SimpleCookie(answer.headers["set-cookie"])[name]
    assert cookie["httponly"] and cookie["samesite"] == "lax" and cookie["path"] == "/"
    assert bool(cookie["secure"]) is secure and not cookie["domain"]
    assert answer.headers["cache-control"] == "no-store"


def test_the_api_takes_no_cookies(open_server: Running, browser: httpx.Client) -> None:
    come_back(browser, "root")
    for path in ("/v1/models", "/v1/organization/projects", "/v1/files"):
        assert error_of(browser.get(path)) == (401, "invalid_api_key")
    session = {"authorization": f"Bearer {browser.cookies['verandah_session']}"}
    assert error_of(browser.get("/v1/models", headers=session)) == (401, "invalid_api_key")
    assert open_server.http.get("/v1/models", headers=KEY).is_success


def test_a_return_that_this_browser_did_not_begin_is_refused(
    open_server: Running, browser: httpx.Client
) -> None:
    state = begin(browser)
    refused = (403, "sign_in_failed")
    back = {"code": "ann", "state": state}
    with httpx.Client(base_url=open_server.url) as other:
        assert error_of(other.get("/auth/callback", params=back)) == refused
        begin(other)
        assert error_of(other.get("/auth/callback", params=back)) == refused
    for forged in ("", "a.b", ".", "e30=.0", "\u00e9".encode().decode("latin-1")):
        cookies = {b"cookie": f"verandah_sign_in={forged}".encode("latin-1")}
        answer = httpx.get(f"{open_server.url}/auth/callback", params=back, headers=cookies)
        assert error_of(answer) == refused
    for wrong in ({"state": "x"}, {"state": "\u00e9"}, {"iss": "https://evil.example"}):
        assert error_of(browser.get("/auth/callback", params=back | wrong)) == refused
    assert error_of(browser.get("/auth/callback")) == refused
    assert browser.get("/auth/callback", params=back | {"iss": ISSUER}).status_code == 303


def test_a_return_is_good_once(open_server: Running, browser: httpx.Client) -> None:
    state = begin(browser)
    kept = dict(browser.cookies)
    back = {"code": "ann", "state": state}
    assert browser.get("/auth/callback", params=back).status_code == 303
    again = httpx.get(f"{open_server.url}/auth/callback", params=back, cookies=kept)
    assert error_of(again) == (403, "sign_in_failed") and "used before" in again.text


def test_a_return_after_ten_minutes_is_refused(browser: httpx.Client, clock: Clock) -> None:
    state = begin(browser)
    clock.now += 601
    answer = browser.get("/auth/callback", params={"code": "ann", "state": state})
    assert error_of(answer) == (403, "sign_in_failed") and "10 minutes" in answer.text


def test_what_the_provider_refuses_is_told(browser: httpx.Client) -> None:
    state = begin(browser)
    refused = {"state": state, "error": "access_denied", "error_description": "no <b>"}
    answer = browser.get("/auth/callback", params=refused)
    assert error_of(answer) == (403, "sign_in_failed") and "no <b>" in answer.text
    assert answer.headers["content-type"] == "application/json"


def test_whom_no_group_lets_in_is_told_and_gets_no_session(browser: httpx.Client) -> None:
    answer = come_back(browser, "eve")
    assert error_of(answer) == (403, "sign_in_failed") and "none of your groups" in answer.text
    assert "verandah_session" not in browser.cookies


@pytest.mark.parametrize(
    "page",
    ["//evil.example", "https://evil.example", "/\\evil.example", "docs", "/a\nb", "", "/" * 513],
)
def test_a_sign_in_leads_to_no_other_server(browser: httpx.Client, page: str) -> None:
    answer = browser.get("/auth/login", params={"next": page})
    assert error_of(answer) == (400, "invalid_value")


def test_another_name_of_this_machine_leads_to_the_right_one(open_server: Running) -> None:
    url = open_server.url.replace("127.0.0.1", "localhost")
    answer = httpx.get(f"{url}/auth/login?next=/docs")
    assert answer.headers["location"] == f"{open_server.url}/auth/login?next=/docs"
    evil = httpx.get(f"{open_server.url}/auth/login", headers={"host": "evil.example"})
    assert evil.headers["location"] == f"{open_server.url}/auth/login"


def redeem(browser: httpx.Client, code: str, **body: Any) -> httpx.Response:
    return browser.post("/auth/token", json={"code": code, "code_verifier": VERIFIER, **body})


def code_for(browser: httpx.Client, person: str) -> str:
    answer = come_back(browser, person, PROGRAM)
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text.splitlines()[-1]


def test_a_program_gets_a_key_of_the_person(open_server: Running, browser: httpx.Client) -> None:
    code = code_for(browser, "ann")
    assert "verandah_session" not in browser.cookies
    made = redeem(browser, code, name="laptop", expires_in_seconds=600).json()
    assert (made["owner"], made["admin"], made["user"]["name"]) == ("a", False, "Ann")
    assert "admin" not in made["scopes"]
    bearer = {"authorization": f"Bearer {made['value']}"}
    assert browser.get("/v1/models", headers=bearer).is_success
    keys = open_server.http.get("/v1/organization/projects/a/api_keys", headers=KEY).json()["data"]
    assert [key["name"] for key in keys] == ["laptop"]
    assert keys[0]["owner"]["user"]["name"] == "Ann"
    assert keys[0]["expires_at"] - keys[0]["created_at"] == 600
    assert error_of(redeem(browser, code)) == (403, "sign_in_failed")
    assert browser.post("/auth/revoke", headers=bearer).json()["deleted"] is True
    open_server.services.keys.refresh()
    assert error_of(browser.post("/auth/revoke", headers=bearer)) == (401, "invalid_api_key")
    assert error_of(browser.post("/auth/revoke")) == (401, "invalid_api_key")
    assert error_of(browser.post("/auth/revoke", headers=KEY)) == (400, "invalid_value")


def test_the_code_is_of_no_use_to_who_overhears_it(browser: httpx.Client) -> None:
    code = code_for(browser, "ann")
    for wrong in ({"code_verifier": "w" * 60}, {"code": "vs-" + "a" * 49}, {"code": "\u00e9"}):
        answer = browser.post("/auth/token", json={"code": code, "code_verifier": VERIFIER} | wrong)
        assert error_of(answer) == (403, "sign_in_failed")
    come_back(browser, "ann")
    session = browser.cookies["verandah_session"]
    assert error_of(redeem(browser, session)) == (403, "sign_in_failed")
    assert redeem(browser, code).is_success


def test_who_is_a_member_of_several_says_for_which(browser: httpx.Client) -> None:
    code = code_for(browser, "bob")
    answer = redeem(browser, code)
    assert error_of(answer) == (409, "conflict") and "a member of a, b" in answer.text
    assert error_of(redeem(browser, code, owner="default")) == (409, "conflict")
    assert error_of(redeem(browser, code, name="")) == (400, "invalid_value")
    assert error_of(redeem(browser, code, expires_in_seconds=86_401)) == (400, "invalid_value")
    assert error_of(redeem(browser, code, expires_in_seconds=0)) == (400, "invalid_value")
    made = redeem(browser, code, owner="b").json()
    assert made["owner"] == "b" and "admin" in made["scopes"]


def test_a_key_of_the_servers_admin_is_for_its_admins_alone(
    open_server: Running, browser: httpx.Client, provider: TrustingProvider
) -> None:
    assert error_of(redeem(browser, code_for(browser, "ann"), admin=True)) == (409, "conflict")
    made = redeem(browser, code_for(browser, "root"), admin=True).json()
    bearer = {"authorization": f"Bearer {made['value']}"}
    assert made["admin"] and browser.get("/v1/organization/projects", headers=bearer).is_success
    provider.regroup("root")
    assert error_of(come_back(browser, "root")) == (403, "sign_in_failed")
    open_server.services.keys.refresh()
    answer = browser.get("/v1/organization/projects", headers=bearer)
    assert error_of(answer) == (401, "invalid_api_key")


def test_a_member_of_default_makes_no_key_of_the_servers_admin(
    open_server: Running, browser: httpx.Client
) -> None:
    open_server.services.tenants.people.add(
        "default", "admin", user_id=None, email="ann@example.com"
    )
    answer = redeem(browser, code_for(browser, "ann"), admin=True)
    assert error_of(answer) == (403, "insufficient_permissions")


def test_the_browser_brings_the_code_to_this_machine_alone(browser: httpx.Client) -> None:
    query = PROGRAM.replace("port=0", "port=5555") + "&program_state=p"
    place = urlsplit(come_back(browser, "ann", query).headers["location"])
    assert place.netloc == "127.0.0.1:5555"
    assert parse_qs(place.query)["state"] == ["p"]


@pytest.mark.parametrize(
    "query",
    [
        "?port=5555",
        f"?code_challenge={challenge_of(VERIFIER)}",
        "?port=65536&code_challenge=" + "a" * 43,
        "?port=0&code_challenge=" + "a" * 42,
        "?port=0&code_challenge=" + "%C3%A9" * 43,
        "?port=0&code_challenge=" + "a" * 43 + "&program_state=" + "s" * 129,
        "?redirect_uri=https://evil.example",
    ],
)
def test_a_wrong_beginning_is_refused(browser: httpx.Client, query: str) -> None:
    assert browser.get(f"/auth/login{query}").status_code == 400


def test_a_user_has_a_bounded_number_of_sessions(open_server: Running) -> None:
    sign_in = open_server.services.signing_in
    assert sign_in is not None
    person = TrustingProvider()
    person.add("ann", "team-a")
    user = sign_in._identities.sign_in(person.people["ann"], sign_in._groups.grants(["team-a"]))
    texts = [sign_in._sessions.create(user, f"s{n}", 60) for n in range(52)]
    alive = [open_server.http.get("/auth/session", headers=cookie(it)) for it in texts]
    assert [answer.is_success for answer in alive] == [False] * 2 + [True] * 50


def cookie(text: str) -> dict[str, str]:
    return {"cookie": f"verandah_session={text}"}


def test_without_a_provider_there_is_no_sign_in(server: Running) -> None:
    for method, path in (("GET", "login"), ("GET", "callback"), ("GET", "session")):
        answer = server.http.request(method, f"/auth/{path}")
        assert error_of(answer) == (404, "not_found") and "--oidc-issuer" in answer.text
    assert server.http.post("/auth/logout").status_code == 404
    assert server.http.post("/auth/token", json={}).status_code in (400, 404)
