"""OpenAI's SDK, unmodified, manages the server's projects, users and keys."""

from collections.abc import Callable, Iterator

import openai
import pytest
from openai import OpenAI

from server.tenancy import key_book
from server.tenancy.keys import Keys
from tests.api.running import Publish, Running, Serve

Open = Callable[[str], OpenAI]


@pytest.fixture
def locked(serve: Serve, server: Running) -> Running:
    return serve(keys=Keys("the key", server.services.tenants.keys))


@pytest.fixture
def open_with(locked: Running) -> Iterator[Open]:
    """A client with that key for everything."""
    with OpenAI(base_url=f"{locked.url}/v1", api_key="x", max_retries=0, timeout=10) as sdk:
        yield lambda key: sdk.with_options(api_key=key, admin_api_key=key)


@pytest.fixture
def admin(open_with: Open) -> OpenAI:
    return open_with("the key")


def test_a_service_account_that_gets_no_key_is_not_made(
    admin: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_book, "MOST_KEYS", 1)
    organization = admin.admin.organization
    organization.projects.create(name="team-a")
    accounts = organization.projects.service_accounts
    first = accounts.create("team-a", name="first")
    with pytest.raises(openai.ConflictError, match=r"project 'team-a' has 1 keys .* revoke"):
        accounts.create("team-a", name="second")
    assert [account.id for account in accounts.list("team-a")] == [first.id]


def code_of(error: openai.APIStatusError) -> tuple[int, str | None]:
    return error.status_code, error.code


def test_projects(admin: OpenAI) -> None:
    projects = admin.admin.organization.projects
    made = projects.create(name="Team-A")
    assert (made.id, made.name, made.status) == ("team-a", "Team-A", "active")
    odd = projects.create(name="Équipe 2")
    assert odd.id.startswith("proj_") and projects.retrieve(odd.id).name == "Équipe 2"
    for same in ("TEAM-a", "team-a ", "équipe 2", "E\u0301quipe 2", "Default"):
        with pytest.raises(openai.ConflictError):
            projects.create(name=same)
    assert projects.update("team-a", name="Team One").name == "Team One"
    assert [project.id for project in projects.list(limit=1)] == ["default", odd.id, "team-a"]
    archived = projects.archive("team-a")
    assert archived.status == "archived" and archived.archived_at
    assert [project.id for project in projects.list()] == ["default", odd.id]
    assert len([*projects.list(include_archived=True)]) == 3
    with pytest.raises(openai.ConflictError):
        projects.archive("default")


def test_users(admin: OpenAI) -> None:
    organization = admin.admin.organization
    organization.projects.create(name="team-a")
    ann = organization.projects.users.create("team-a", role="member", email="Ann@example.com")
    assert (ann.email, ann.name, ann.role) == ("ann@example.com", "ann", "member")
    again = organization.projects.users.create("default", role="owner", email="ANN@example.com")
    assert again.id == ann.id, "an email is one user"
    with pytest.raises(openai.ConflictError):
        organization.projects.users.create("team-a", role="member", user_id=ann.id)
    changed = organization.projects.users.update(ann.id, project_id="team-a", role="owner")
    assert changed.role == "owner"
    assert organization.projects.users.retrieve(ann.id, project_id="team-a").role == "owner"
    assert [user.id for user in organization.projects.users.list("team-a")] == [ann.id]
    assert [user.id for user in organization.users.list(emails=["ann@example.com"])] == [ann.id]
    assert [*organization.users.list(emails=["bob@example.com"])] == []
    assert organization.users.retrieve(ann.id).role == "reader"
    assert organization.users.update(ann.id, role="owner").role == "owner"
    assert organization.projects.users.delete(ann.id, project_id="team-a").deleted
    assert [*organization.projects.users.list("team-a")] == []
    assert organization.users.delete(ann.id).deleted
    with pytest.raises(openai.NotFoundError):
        organization.users.retrieve(ann.id)


def test_service_accounts_and_keys(admin: OpenAI, open_with: Open) -> None:
    projects = admin.admin.organization.projects
    projects.create(name="team-a")
    account = projects.service_accounts.create("team-a", name="nightly")
    assert account.api_key is not None and account.role == "member"
    assert open_with(account.api_key.value).models.list().data[0].id == "base"
    more = projects.service_accounts.api_keys.create(
        account.id, project_id="team-a", name="files", scopes=["files"], expires_in_seconds=60
    )
    assert more.expires_at is not None and more.expires_at - more.created_at == 60
    with pytest.raises(openai.PermissionDeniedError) as caught:
        open_with(more.value).models.list()
    assert code_of(caught.value) == (403, "missing_scope")
    assert "Missing scopes: adapters.read or models.use" in str(caught.value)
    listed = [*projects.api_keys.list("team-a", limit=1)]
    assert [key.id for key in listed] == [account.api_key.id, more.id]
    assert listed[0].owner.service_account is not None
    assert listed[0].owner.service_account.id == account.id
    assert account.api_key.value.startswith(listed[0].redacted_value.rstrip("."))
    widened = projects.api_keys.update(more.id, project_id="team-a", scopes=["models.use"])
    assert widened.name == "files"
    assert projects.api_keys.delete(account.api_key.id, project_id="team-a").deleted
    with pytest.raises(openai.NotFoundError):
        projects.api_keys.retrieve(account.api_key.id, project_id="team-a")
    renamed = projects.service_accounts.update(account.id, project_id="team-a", name="daily")
    assert (renamed.name, renamed.role) == ("daily", "member")
    assert projects.service_accounts.delete(account.id, project_id="team-a").deleted
    assert [*projects.service_accounts.list("team-a")] == [*projects.api_keys.list("team-a")] == []


def test_admin_keys(admin: OpenAI, open_with: Open) -> None:
    keys = admin.admin.organization.admin_api_keys
    made = keys.create(name="ops", expires_in_seconds=60)
    second = open_with(made.value).admin.organization.admin_api_keys.create(name="more")
    assert [key.name for key in keys.list(order="desc", limit=1)] == ["more", "ops"]
    assert keys.retrieve(made.id).redacted_value == f"{made.value[:9]}..."
    assert keys.delete(second.id).deleted and len([*keys.list()]) == 1


def test_an_owners_admin_manages_that_owner_alone(admin: OpenAI, open_with: Open) -> None:
    projects = admin.admin.organization.projects
    for name in ("team-a", "team-b"):
        projects.create(name=name)
    account = projects.service_accounts.create(
        "team-a", name="boss", create_service_account_only=True
    )
    projects.service_accounts.update(account.id, project_id="team-a", role="owner")
    key = projects.service_accounts.api_keys.create(
        account.id, project_id="team-a", name="boss", scopes=["admin"]
    )
    boss = open_with(key.value).admin.organization
    assert [project.id for project in boss.projects.list()] == ["team-a"]
    assert boss.projects.users.create("team-a", role="member", email="bob@example.com").id
    with pytest.raises(openai.NotFoundError) as foreign:
        boss.projects.api_keys.list("team-b")
    with pytest.raises(openai.NotFoundError) as missing:
        boss.projects.api_keys.list("team-c")
    assert str(foreign.value).replace("team-b", "team-c") == str(missing.value)
    for forbidden in (
        lambda: boss.projects.create(name="team-d"),
        lambda: boss.projects.archive("team-a"),
        lambda: boss.users.list(),
        lambda: boss.admin_api_keys.create(name="more"),
    ):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            forbidden()
        assert code_of(caught.value) == (403, "insufficient_permissions")


def test_an_owner_sees_its_own_things_alone(
    admin: OpenAI, open_with: Open, publish: Publish
) -> None:
    projects = admin.admin.organization.projects
    sdks = {}
    for name in ("team-a", "team-b"):
        projects.create(name=name)
        account = projects.service_accounts.create(name, name="bot")
        assert account.api_key is not None
        sdks[name] = open_with(account.api_key.value)
        publish("pirate", name)
    publish("secret", "team-b")
    ours = sdks["team-a"]
    assert [model.id for model in ours.models.list()] == ["base", "pirate"]
    for mine in ("pirate", "pirate@1", "team-a/pirate", "team-a/pirate@1"):
        assert ours.models.retrieve(mine).id == mine
    told = []
    for foreign in ("team-b/pirate", "team-b/secret", "team-b/nothing", "team-c/pirate", "../x"):
        with pytest.raises(openai.NotFoundError) as caught:
            ours.models.retrieve(foreign)
        told.append(str(caught.value).replace(foreign, "?"))
        with pytest.raises(openai.NotFoundError):
            ours.models.delete(foreign)
    assert len(set(told)) == 1
    assert ours.models.delete("team-a/pirate").deleted
    assert [model.id for model in sdks["team-b"].models.list()] == ["base", "pirate", "secret"]
    file = ours.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    with pytest.raises(openai.NotFoundError):
        sdks["team-b"].files.retrieve(file.id)


def test_limits(admin: OpenAI, open_with: Open, locked: Running) -> None:
    projects = admin.admin.organization.projects
    projects.create(name="team-a")
    rates = projects.rate_limits
    found = [*rates.list_rate_limits("team-a")]
    assert [(it.id, it.model, it.max_tokens_per_1_minute) for it in found] == [
        ("rl-base", "base", 0)
    ]
    changed = rates.update_rate_limit(
        "rl-base", project_id="team-a", max_requests_per_1_minute=7, max_tokens_per_1_minute=900
    )
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (7, 900)
    kept = rates.update_rate_limit("rl-base", project_id="team-a", max_tokens_per_1_minute=0)
    assert (kept.max_requests_per_1_minute, kept.max_tokens_per_1_minute) == (7, 0)
    for wrong in ("rl-other", "rl-"):
        with pytest.raises(openai.NotFoundError):
            rates.update_rate_limit(wrong, project_id="team-a", max_tokens_per_1_minute=1)
    with pytest.raises(openai.BadRequestError):
        rates.update_rate_limit("rl-base", project_id="team-a", max_tokens_per_1_minute=-1)
    set_to = projects.update("team-a", extra_body={"limits": {"files": 1, "weight": 2}})
    assert set_to.to_dict()["limits"]["files"] == 1  # type: ignore[index]
    account = projects.service_accounts.create("team-a", name="bot")
    key = projects.service_accounts.api_keys.create(
        account.id, project_id="team-a", name="all", scopes=["admin", "files"]
    )
    projects.service_accounts.update(account.id, project_id="team-a", role="owner")
    team = open_with(key.value)
    assert (
        next(iter(team.admin.organization.projects.list())).to_dict()["limits"]
        == (set_to.to_dict()["limits"])
    )
    for forbidden in (
        lambda: team.admin.organization.projects.update("team-a", extra_body={"limits": {}}),
        lambda: team.admin.organization.projects.rate_limits.update_rate_limit(
            "rl-base", project_id="team-a", max_tokens_per_1_minute=10**6
        ),
    ):
        with pytest.raises(openai.PermissionDeniedError):
            forbidden()
    assert team.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune").id
    with pytest.raises(openai.RateLimitError) as caught:
        team.with_options(max_retries=3).files.create(file=("b.jsonl", b"{}"), purpose="fine-tune")
    assert code_of(caught.value) == (429, "insufficient_quota")
    assert caught.value.type == "insufficient_quota" and "may have 1" in str(caught.value)
    assert caught.value.response.headers["x-should-retry"] == "false"
