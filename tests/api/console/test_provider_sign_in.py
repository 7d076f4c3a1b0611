"""Signing in to the console by a provider: choose an owner, switch, sign out, and what is left."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import unquote

import httpx
import pytest
from sqlalchemy import update

from server.api.app_services import Services
from server.db.tenancy_tables import SessionRow
from server.tenancy.key_rows import ApiKey
from server.tenancy.keys import Keys
from server.tenancy.principal import SERVER_ADMIN
from server.tenancy.sign_in.group_map import GroupMap
from server.tenancy.sign_in.signing_in import Lives, SigningIn
from server.tenancy.usage.audit_log import Wanted
from tests.api.running import Host, Running, Serve
from tests.api.sign_in_fakes import TrustingProvider, begin

CHOOSE = "/console/sign-in/choose"
SERVER_KEY = "the key"
Visit = Callable[[str], httpx.Client]


@pytest.fixture
def provider() -> TrustingProvider:
    provider = TrustingProvider()
    provider.add("ann", "team-a", email="ann@example.com")
    provider.add("bob", "team-a", "team-b")
    provider.add("root", "admins", "team-a")
    return provider


@pytest.fixture
def running(serve: Serve, services: Services, host: Host, provider: TrustingProvider) -> Running:
    for name in ("a", "b"):
        services.tenants.owners.create(name)
    signing_in = SigningIn(
        provider,
        services.tenants.keys._database,
        GroupMap(["team-a=a:member", "team-b=b:admin", "admins=*:admin"]),
        host.url,
        Lives(session_s=3600, key_s=86_400),
    )
    return serve(signing_in=signing_in, keys=Keys(SERVER_KEY, services.tenants.keys))


@pytest.fixture
def visit(running: Running) -> Iterator[Visit]:
    """A browser of somebody who has come back from the provider to the choice of an owner."""
    with ExitStack() as stack:

        def visited(name: str) -> httpx.Client:
            client = stack.enter_context(httpx.Client(base_url=running.url, timeout=10))
            client.headers["sec-fetch-site"] = "same-origin"
            state = begin(client, f"?next={CHOOSE}?next=%252Fconsole%252Fkeys")
            back = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
            answer = client.get(
                "/auth/callback", params={"code": name, "state": state}, headers=back
            )
            assert answer.headers["location"] == f"{CHOOSE}?next=%2Fconsole%2Fkeys"
            page = client.get(answer.headers["location"], headers=back)
            assert page.status_code == 200, page.text
            assert 'name="next" value="/console/keys"' in page.text
            return client

        yield visited


def choose(client: httpx.Client, owner: str, **form: str) -> httpx.Response:
    return client.post(CHOOSE, data={"owner": owner, "next": "/console"} | form)


def key_of(client: httpx.Client) -> str:
    return next(it.value or "" for it in client.cookies.jar if "console" in it.name)


def works(running: Running, key: str) -> bool:
    running.services.keys.refresh()
    header = {"authorization": f"Bearer {key}"}
    return running.http.get("/v1/models", headers=header).status_code == 200


def keys(running: Running, owner: str, kind: str = "owner") -> list[ApiKey]:
    return [*running.services.tenants.keys.list(owner, kind=kind, limit=100)[0]]


def test_the_sign_in_page_offers_the_provider_and_keeps_the_page(running: Running) -> None:
    page = running.http.get("/console/sign-in?next=/console/jobs").text
    link = page.split('class="button main" href="')[1].split('"')[0]
    assert unquote(link) == f"/auth/login?next={CHOOSE}?next=%2Fconsole%2Fjobs"
    assert running.http.get(link).status_code == 303
    long = running.http.get("/console/sign-in?next=/console/jobs?a=" + "b" * 600).text
    link = long.split('class="button main" href="')[1].split('"')[0]
    assert unquote(link) == f"/auth/login?next={CHOOSE}"


def test_without_a_provider_the_page_asks_for_a_key_alone(serve: Serve) -> None:
    plain = serve(keys=Keys(SERVER_KEY))
    assert "provider" not in plain.http.get("/console/sign-in").text
    assert plain.http.get(CHOOSE).status_code == 404
    me = {"sec-fetch-site": "same-origin"}
    assert plain.http.post(CHOOSE, data={"owner": "a"}, headers=me).status_code == 404


def test_a_member_works_for_the_chosen_owner(running: Running, visit: Visit) -> None:
    ann = visit("ann")
    assert ann.get("/console").status_code == 303, "nothing is open before the choice"
    page = ann.get(CHOOSE).text
    assert "Ann" in page and "ann@example.com" in page
    assert 'name="owner" value="a"' in page
    assert 'value="b"' not in page and "whole server" not in page
    assert choose(ann, "a").headers["location"] == "/console"
    shown = ann.get("/console").text
    assert ">a<" in shown and f'href="{CHOOSE}"' in shown
    assert ann.get("/console/v1/models").status_code == 200
    assert ann.get("/console/v1/organization/projects").status_code == 403, "a member's scopes"
    (key,) = keys(running, "a")
    assert (key.name, key.user_name) == ("console", "Ann")
    assert key.expires_at is not None and 3590 <= key.expires_at - key.created_at <= 3600
    assert "admin" not in key.scopes


def test_an_admin_of_the_server_may_take_all_of_it(running: Running, visit: Visit) -> None:
    root = visit("root")
    assert "whole server" in root.get(CHOOSE).text
    assert choose(root, "", whole="true").status_code == 303
    assert "Admin of the server" in root.get("/console").text
    (key,) = keys(running, "default", "admin")
    assert key.name == "console"


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"owner": "b"}, 409),
        ({"owner": "default"}, 409),
        ({"owner": ""}, 409),
        ({"owner": "nobody"}, 409),
        ({"owner": "<script>"}, 409),
        ({"owner": "a", "whole": "true"}, 409),
        ({"owner": "a", "whole": "maybe"}, 400),
        ({"owner": "x" * 300}, 400),
    ],
)
def test_no_key_is_made_for_what_is_not_offered(
    running: Running, visit: Visit, form: dict[str, str], status: int
) -> None:
    ann = visit("ann")
    answer = ann.post(CHOOSE, data=form)
    assert answer.status_code == status
    assert "<script>" not in answer.text.partition("<main")[2]
    assert "set-cookie" not in answer.headers
    assert [*keys(running, "a"), *keys(running, "b"), *keys(running, "default", "admin")] == []


def test_who_switches_has_one_key_at_a_time(running: Running, visit: Visit) -> None:
    bob = visit("bob")
    choose(bob, "a")
    first = key_of(bob)
    choose(bob, "b")
    second = key_of(bob)
    assert "b</strong>" in bob.get("/console").text
    assert (works(running, first), works(running, second)) == (False, True)
    assert keys(running, "a") == []
    for _ in range(120):  # more often than a person may have keys
        assert choose(bob, "b").status_code == 303
    assert len(keys(running, "b")) == 1


def test_two_browsers_do_not_sign_each_other_out(running: Running, visit: Visit) -> None:
    laptop, phone = visit("ann"), visit("ann")
    choose(laptop, "a")
    choose(phone, "a")
    laptop.post("/console/sign-in/out")
    running.services.keys.refresh()
    assert laptop.get("/console").status_code == 303
    assert phone.get("/console").status_code == 200


@pytest.mark.parametrize("way", ["/console/sign-in/out", "/auth/logout"])
def test_signing_out_revokes_the_key_and_ends_the_session(
    running: Running, visit: Visit, way: str
) -> None:
    ann = visit("ann")
    choose(ann, "a")
    key, kept = key_of(ann), dict(ann.cookies)
    assert works(running, key)
    assert ann.post(way).status_code == 303
    assert not works(running, key)
    assert "verandah_session" not in ann.cookies
    stolen = running.http.get("/auth/session", headers=header_of(kept))
    assert stolen.status_code == 401
    again = running.http.get(CHOOSE, headers=header_of(kept))
    assert again.headers["location"] == "/console/sign-in"


def header_of(cookies: dict[str, str]) -> dict[str, str]:
    return {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}


def test_signing_out_leaves_a_pasted_key(running: Running, visit: Visit) -> None:
    ann = visit("ann")
    choose(ann, "a")
    made = key_of(ann)
    book = running.services.tenants.keys
    user = keys(running, "a")[0].user
    pasted = book.create("a", "console", by=SERVER_ADMIN, user=user)[1]
    assert ann.post("/console/sign-in", data={"key": pasted}).status_code == 303
    ann.post("/console/sign-in/out")
    assert (works(running, pasted), works(running, made)) == (True, False)


def test_a_session_that_ends_elsewhere_closes_the_choice(running: Running, visit: Visit) -> None:
    ann = visit("ann")
    text = ann.cookies["verandah_session"]
    running.http.post("/auth/logout", headers={"cookie": f"verandah_session={text}"})
    answer = choose(ann, "a")
    assert answer.headers["location"] == "/console/sign-in"
    assert "verandah_session" not in ann.cookies
    assert keys(running, "a") == []


def test_who_leaves_a_group_loses_the_key(
    running: Running, visit: Visit, provider: TrustingProvider
) -> None:
    bob = visit("bob")
    choose(bob, "b")
    provider.regroup("bob", "team-a")
    visit("bob")
    assert not works(running, key_of(bob))


def test_the_oldest_sessions_take_their_keys_along(running: Running, visit: Visit) -> None:
    ann = visit("ann")
    choose(ann, "a")
    sign_in = running.services.signing_in
    assert sign_in is not None
    user = keys(running, "a")[0].user
    for number in range(50):
        sign_in._sessions.create(user or "", f"state {number}", 60)
    assert not works(running, key_of(ann))
    assert keys(running, "a") == []


def test_a_key_of_an_ended_session_is_listed_no_more(running: Running, visit: Visit) -> None:
    sign_in = running.services.signing_in
    assert sign_in is not None
    choose(visit("ann"), "a")
    (key,) = keys(running, "a")
    database = running.services.tenants.keys._database
    with database.transaction() as session:
        session.execute(update(SessionRow).values(expires_at=SessionRow.expires_at - 10_000))
    visit("bob")
    assert key.id not in [it.id for it in keys(running, "a")]


def test_the_trail_tells_of_it(running: Running, visit: Visit) -> None:
    ann = visit("ann")
    choose(ann, "a")
    ann.post("/console/sign-in/out")
    entries = running.services.tenants.audit.list(Wanted(), limit=4)[0]
    told = {entry.action: entry for entry in entries}
    assert [*told] == ["logout.succeeded", "api_key.deleted", "api_key.created", "login.succeeded"]
    assert len({entry.actor for entry in entries}) == 1
    assert {entry.address for entry in entries} == {"127.0.0.1"}
    assert told["api_key.created"].owner == told["api_key.deleted"].owner == "a"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {},
    ],
)
def test_another_sites_page_chooses_nothing(
    running: Running, visit: Visit, headers: dict[str, str]
) -> None:
    """The session's cookie is lax, so a form of a neighbouring site would bring it along."""
    ann = visit("ann")
    del ann.headers["sec-fetch-site"]
    assert ann.post(CHOOSE, data={"owner": "a"}, headers=headers).status_code == 403
    assert keys(running, "a") == []


def test_the_session_alone_opens_no_page_and_no_api(visit: Visit) -> None:
    root = visit("root")
    assert root.get("/console/admin").status_code == 303
    assert root.get("/console/v1/models").status_code == 401
    bearer = {"authorization": f"Bearer {root.cookies['verandah_session']}"}
    assert root.get("/console/v1/models", headers=bearer).status_code == 401


def test_an_archived_owner_is_told(running: Running, visit: Visit) -> None:
    ann = visit("ann")
    running.services.tenants.owners.archive("a")
    answer = choose(ann, "a")
    assert answer.status_code == 409 and "archived" in answer.text
    assert "set-cookie" not in answer.headers


def test_names_of_the_provider_are_text(
    running: Running, visit: Visit, provider: TrustingProvider
) -> None:
    provider.add("<b>x", "team-a")
    page = visit("<b>x").get(CHOOSE).text
    assert "&lt;B&gt;X" in page and "<B>X" not in page
