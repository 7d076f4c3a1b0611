"""What a sign-in changes is in the audit trail, with the person as its actor."""

from collections.abc import Iterator

import httpx
import pytest

from server.api.app_services import Services
from server.db.audit_trail import Actor, acting
from server.tenancy.usage.audit_log import Entry, Wanted
from tests.api.running import Host, Running, Serve
from tests.api.sign_in.test_sign_in import PROGRAM, VERIFIER, Clock, served
from tests.api.sign_in_fakes import TrustingProvider, come_back


@pytest.fixture
def provider() -> TrustingProvider:
    provider = TrustingProvider()
    provider.add("ann", "team-a", email="ann@example.com")
    provider.add("eve")
    return provider


@pytest.fixture
def open_server(
    serve: Serve, services: Services, host: Host, provider: TrustingProvider
) -> Running:
    return served(serve, services, host.url, provider, Clock())


@pytest.fixture
def browser(open_server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=open_server.url, timeout=10) as client:
        yield client


def trail(server: Running) -> list[Entry]:
    """What sign-ins wrote, the oldest first."""
    entries, _ = server.services.tenants.audit.list(Wanted(), limit=100)
    return [entry for entry in reversed(entries) if not entry.action.startswith("project.")]


def test_a_browsers_sign_in_and_out_are_recorded(
    open_server: Running, browser: httpx.Client
) -> None:
    assert come_back(browser, "ann").status_code == 303
    assert browser.post("/auth/logout").status_code == 303
    added, came, went = trail(open_server)
    user = added.object
    assert (added.action, added.owner) == ("user.added", "a")
    assert added.after == {"role": "member", "email": "ann@example.com"}
    assert (came.action, went.action) == ("login.succeeded", "logout.succeeded")
    for entry in (added, came, went):
        assert (entry.actor, entry.object, entry.key) == (user, user, None)
        assert entry.address == "127.0.0.1"
    assert came.owner is None, "it is the server's to read"
    assert acting() == Actor()


def test_what_groups_change_is_recorded(
    open_server: Running, browser: httpx.Client, provider: TrustingProvider
) -> None:
    come_back(browser, "ann")
    provider.regroup("ann", "team-b", "admins")
    come_back(browser, "ann")
    changes = [
        (entry.action, entry.owner, entry.before, entry.after) for entry in trail(open_server)[2:]
    ]
    assert sorted(changes, key=str) == [
        ("login.succeeded", None, None, None),
        ("user.added", "b", None, {"role": "admin", "email": "ann@example.com"}),
        ("user.added", "default", None, {"role": "admin", "email": "ann@example.com"}),
        ("user.deleted", "a", {"role": "member"}, None),
        ("user.updated", None, {"role": "member"}, {"role": "admin"}),
    ]
    provider.regroup("ann")
    assert come_back(browser, "ann").status_code == 403
    assert [(entry.action, entry.owner) for entry in trail(open_server)[7:]] == [
        *[("user.deleted", owner) for owner in ("b", "default")],
        ("user.updated", None),
        ("login.failed", None),
    ]
    assert len({entry.actor for entry in trail(open_server)}) == 1


def test_strangers_leave_no_rows(open_server: Running, browser: httpx.Client) -> None:
    assert come_back(browser, "eve").status_code == 403
    assert trail(open_server) == []


def test_a_programs_key_is_its_persons_doing(open_server: Running, browser: httpx.Client) -> None:
    code = come_back(browser, "ann", PROGRAM).text.splitlines()[-1]
    body = {"code": code, "code_verifier": VERIFIER, "name": "laptop"}
    made = browser.post("/auth/token", json=body).json()
    bearer = {"authorization": f"Bearer {made['value']}"}
    assert browser.post("/auth/revoke", headers=bearer).is_success
    created, deleted = trail(open_server)[-2:]
    user = made["user"]["id"]
    assert (created.action, created.object, created.owner) == ("api_key.created", made["id"], "a")
    assert (created.actor, created.key, created.address) == (user, None, "127.0.0.1")
    assert (deleted.action, deleted.object, deleted.owner) == ("api_key.deleted", made["id"], "a")
    assert (deleted.actor, deleted.key, deleted.address) == (user, made["id"], "127.0.0.1")
    path = "/v1/organization/audit_logs?resource_ids[]=" + made["id"]
    page = open_server.http.get(path, headers={"authorization": "Bearer the key"}).json()["data"]
    assert [entry["actor"]["type"] for entry in page] == ["api_key", "session"]
    assert page[1]["actor"]["session"] == {"ip_address": "127.0.0.1", "user": {"id": user}}
    assert page[0]["actor"]["api_key"]["user"] == {"id": user}
