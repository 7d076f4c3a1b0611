"""Whatever an operation changes leaves a row in the audit trail. A new one needs a recipe here."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from server.db.audit_trail import address_of
from server.tenancy.found_key import ADMIN
from server.tenancy.keys import Keys
from server.tenancy.principal import SERVER_ADMIN
from server.tenancy.usage.audit_log import Entry, Wanted
from tests.api.running import Publish, Running, Serve

CHANGE_NOTHING = {"POST /v1/chat/completions", "POST /v1/completions"}
SECRET = "vr-"
P = "/v1/organization/projects"


@dataclass
class Setting:
    """A server, and what its operations change."""

    server: Running
    publish: Publish
    made: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> str:
        """The id of a thing, made when it is first asked for."""
        tenants = self.server.services.tenants
        if name == "user":
            member = tenants.people.add("team", "member", user_id=None, email="ann@example.com")
            return member.user.id
        if name == "account":
            return tenants.people.add_service_account("team", "bot").user.id
        if name == "key":
            return tenants.keys.create("team", "key", by=SERVER_ADMIN)[0].id
        if name == "admin_key":
            return tenants.keys.create("default", "key", by=SERVER_ADMIN, kind=ADMIN)[0].id
        if name == "adapter":
            return str(self.publish("pirate"))
        if name == "share":
            shares = self.server.services.tenants.shares
            return shares.give(
                "default", self.adapter.partition("@")[0], "team", "use", by=SERVER_ADMIN
            ).id
        if name == "file":
            sdk = self.server.sdk
            return sdk.files.create(file=("a.jsonl", LINES), purpose="fine-tune").id
        assert name == "job"
        job = self.server.sdk.fine_tuning.jobs.create(model="base", training_file=self.file)
        return job.id


LINES = b'{"prompt": "a", "completion": "b"}\n' * 12
Recipe = tuple[str, Callable[[Setting], tuple[str, Mapping[str, Any]]]]


def sent(path: str, **body: Any) -> tuple[str, Mapping[str, Any]]:
    return path, {"json": body}


def imported(_: Setting) -> tuple[str, Mapping[str, Any]]:
    files = {"config": ("adapter_config.json", b"{}"), "weights": ("w.safetensors", b"x")}
    return "/v1/adapters/import", {"files": files, "data": {"name": "new"}}


def uploaded(_: Setting) -> tuple[str, Mapping[str, Any]]:
    return "/v1/files", {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "fine-tune"}}


def resumed(it: Setting) -> tuple[str, Mapping[str, Any]]:
    job = it.job
    it.server.services.jobs.pause("default", job)
    return f"/v1/fine_tuning/jobs/{job}/resume", {}


RECIPES: dict[str, Recipe] = {
    "DELETE /v1/models/{model_id}": (
        "adapter.deleted",
        lambda it: (f"/v1/models/{it.adapter}", {}),
    ),
    "DELETE /v1/adapters/{adapter_id}": (
        "adapter.deleted",
        lambda it: (f"/v1/adapters/{it.adapter.partition('@')[0]}", {}),
    ),
    "POST /v1/adapters/{adapter_id}/pin": (
        "adapter.pinned",
        lambda it: (f"/v1/adapters/{it.adapter}/pin", {}),
    ),
    "POST /v1/adapters/{adapter_id}/unpin": (
        "adapter.unpinned",
        lambda it: (f"/v1/adapters/{it.adapter}/unpin", {}),
    ),
    "POST /v1/adapters/import": ("adapter.imported", imported),
    "POST /v1/files": ("file.created", uploaded),
    "DELETE /v1/files/{file_id}": ("file.deleted", lambda it: (f"/v1/files/{it.file}", {})),
    "POST /v1/fine_tuning/jobs": (
        "job.created",
        lambda it: sent("/v1/fine_tuning/jobs", model="base", training_file=it.file),
    ),
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": (
        "job.cancelled",
        lambda it: (f"/v1/fine_tuning/jobs/{it.job}/cancel", {}),
    ),
    "POST /v1/fine_tuning/jobs/{job_id}/pause": (
        "job.paused",
        lambda it: (f"/v1/fine_tuning/jobs/{it.job}/pause", {}),
    ),
    "POST /v1/fine_tuning/jobs/{job_id}/resume": ("job.resumed", resumed),
    "POST /v1/shares": (
        "adapter.shared",
        lambda it: sent("/v1/shares", **{"adapter": it.adapter.partition("@")[0], "with": "team"}),
    ),
    "DELETE /v1/shares/{share_id}": (
        "adapter.unshared",
        lambda it: (f"/v1/shares/{it.share}", {}),
    ),
    "POST /v1/adapters/{adapter_id}/copy": (
        "adapter.copied",
        lambda it: sent(f"/v1/adapters/{it.adapter}/copy", name="new"),
    ),
    f"DELETE {P}/{{project_id}}": ("project.deleted", lambda _: (f"{P}/team", {})),
    f"POST {P}": ("project.created", lambda _: sent(P, name="more")),
    f"POST {P}/{{project_id}}": ("project.updated", lambda _: sent(f"{P}/team", name="Us")),
    f"POST {P}/{{project_id}}/archive": ("project.archived", lambda _: (f"{P}/team/archive", {})),
    f"POST {P}/{{project_id}}/users": (
        "user.added",
        lambda _: sent(f"{P}/team/users", role="member", email="bob@example.com"),
    ),
    f"POST {P}/{{project_id}}/users/{{user_id}}": (
        "user.updated",
        lambda it: sent(f"{P}/team/users/{it.user}", role="owner"),
    ),
    f"DELETE {P}/{{project_id}}/users/{{user_id}}": (
        "user.deleted",
        lambda it: (f"{P}/team/users/{it.user}", {}),
    ),
    f"POST {P}/{{project_id}}/service_accounts": (
        "service_account.created",
        lambda _: sent(f"{P}/team/service_accounts", name="bot"),
    ),
    f"POST {P}/{{project_id}}/service_accounts/{{user_id}}": (
        "service_account.updated",
        lambda it: sent(f"{P}/team/service_accounts/{it.account}", name="other"),
    ),
    f"DELETE {P}/{{project_id}}/service_accounts/{{user_id}}": (
        "service_account.deleted",
        lambda it: (f"{P}/team/service_accounts/{it.account}", {}),
    ),
    f"POST {P}/{{project_id}}/service_accounts/{{user_id}}/api_keys": (
        "api_key.created",
        lambda it: sent(f"{P}/team/service_accounts/{it.account}/api_keys", name="k"),
    ),
    f"POST {P}/{{project_id}}/api_keys": (
        "api_key.created",
        lambda _: sent(f"{P}/team/api_keys", name="k"),
    ),
    f"POST {P}/{{project_id}}/api_keys/{{key_id}}": (
        "api_key.updated",
        lambda it: sent(f"{P}/team/api_keys/{it.key}", scopes=["files"]),
    ),
    f"DELETE {P}/{{project_id}}/api_keys/{{key_id}}": (
        "api_key.deleted",
        lambda it: (f"{P}/team/api_keys/{it.key}", {}),
    ),
    f"POST {P}/{{project_id}}/api_keys/{{key_id}}/rotate": (
        "api_key.updated",
        lambda it: sent(f"{P}/team/api_keys/{it.key}/rotate"),
    ),
    f"POST {P}/{{project_id}}/rate_limits/{{rate_limit_id}}": (
        "rate_limit.updated",
        lambda _: sent(f"{P}/team/rate_limits/rl-base", max_requests_per_1_minute=5),
    ),
    "POST /v1/organization/users/{user_id}": (
        "user.updated",
        lambda it: sent(f"/v1/organization/users/{it.user}", role="owner"),
    ),
    "DELETE /v1/organization/users/{user_id}": (
        "user.deleted",
        lambda it: (f"/v1/organization/users/{it.user}", {}),
    ),
    "POST /v1/organization/admin_api_keys": (
        "api_key.created",
        lambda _: sent("/v1/organization/admin_api_keys", name="ops"),
    ),
    "DELETE /v1/organization/admin_api_keys/{key_id}": (
        "api_key.deleted",
        lambda it: (f"/v1/organization/admin_api_keys/{it.admin_key}", {}),
    ),
}


def entries(server: Running, **wanted: Any) -> list[Entry]:
    return [*server.services.tenants.audit.list(Wanted(**wanted), limit=100)[0]]


def test_each_changing_operation_has_a_recipe(server: Running) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    changing = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if method != "get" and path.startswith("/v1/")
    }
    assert changing - CHANGE_NOTHING == set(RECIPES)


@pytest.mark.parametrize("operation", RECIPES)
def test_what_an_operation_changes_is_recorded(
    operation: str, serve: Serve, server: Running, publish: Publish
) -> None:
    services, (action, recipe) = server.services, RECIPES[operation]
    services.tenants.owners.create("team")
    path, options = recipe(Setting(server, publish))
    admin, value = services.tenants.keys.create("default", "me", by=SERVER_ADMIN, kind=ADMIN)
    before = {entry.id for entry in entries(server)}
    locked = serve(keys=Keys("the key", services.tenants.keys))
    headers = {"authorization": f"Bearer {value}"}
    method = operation.partition(" ")[0]
    answer = locked.http.request(method, path, headers=headers, **options)
    assert answer.status_code == 200, answer.text
    new = [entry for entry in entries(server) if entry.id not in before]
    assert action in [entry.action for entry in new]
    for entry in new:
        assert (entry.actor, entry.key, entry.address) == (admin.id, admin.id, "127.0.0.1")
        assert SECRET not in json.dumps([entry.before, entry.after])
    refused = locked.http.request(method, path, **options)
    assert refused.status_code == 401
    assert len(entries(server)) == len(before) + len(new), "a refused request changes nothing"


def test_what_fails_leaves_no_row(server: Running) -> None:
    for path in ("/v1/files/file-1", "/v1/models/nobody", "/v1/models/nobody@2"):
        assert server.http.delete(path).status_code == 404
    assert entries(server) == []


def test_rows_cannot_be_changed(server: Running) -> None:
    server.services.tenants.owners.create("team")
    database = server.services.tenants.audit._database
    with pytest.raises(DatabaseError, match="cannot be changed"), database.transaction() as session:
        session.execute(text("UPDATE audit SET actor = 'nobody'"))


def test_old_rows_are_dropped(server: Running) -> None:
    audit = server.services.tenants.audit
    server.services.tenants.owners.create("team")
    assert audit.drop_older(60) == 0 and len(entries(server)) == 1
    assert audit.drop_older(-60) == 1 and entries(server) == []


@pytest.mark.parametrize(
    ("claimed", "kept"),
    [("192.0.2.7", "192.0.2.7"), ("::1", "::1"), ("", ""), ("a" * 999, ""), ("1.2.3.4\0", "")],
)
def test_an_address_is_one_or_none(claimed: str, kept: str) -> None:
    assert address_of(claimed) == kept


def test_openais_sdk_reads_the_trail(serve: Serve, server: Running) -> None:
    tenants = server.services.tenants
    for name in ("team-a", "team-b"):
        tenants.owners.create(name)
    key, value = tenants.keys.create("team-a", "boss", by=SERVER_ADMIN, scopes=["admin"])
    tenants.keys.create("default", "ops", by=SERVER_ADMIN, kind=ADMIN)
    locked = serve(keys=Keys("the key", tenants.keys))
    with OpenAI(base_url=f"{locked.url}/v1", api_key="x", admin_api_key="the key") as sdk:
        logs = sdk.admin.organization.audit_logs
        told = [entry.type for entry in logs.list(limit=2)]
        created = ["project.created", "project.created"]
        assert told == ["api_key.created", "api_key.created", *reversed(created)]
        first, second = [*logs.list(event_types=["project.created"])]
        assert first.project is not None and first.project.id == "team-b"
        assert first.project_created is not None and first.project_created.id == "team-b"
        assert [it.id for it in logs.list(before=second.id, event_types=["project.created"])] == [
            first.id
        ]
        assert [it.id for it in logs.list(project_ids=["team-a"], limit=1)][-1] == second.id
        assert [*logs.list(effective_at={"lt": 1})] == []
        assert [it.id for it in logs.list(resource_ids=["team-b"])] == [first.id]
        assert [*logs.list(actor_ids=["user-1"])] == []
        assert [*logs.list(actor_emails=["ann@example.com"])] == []
        boss = sdk.with_options(admin_api_key=value).admin.organization.audit_logs
        assert [it.type for it in boss.list()] == ["api_key.created", "project.created"]
        assert [*boss.list(project_ids=["team-b"])] == []
        boss_made = next(iter(boss.list(event_types=["api_key.created"])))
        assert boss_made.api_key_created is not None and boss_made.api_key_created.id == key.id
        with pytest.raises(openai.BadRequestError):
            logs.list(after="audit_log-1")
