"""`verandah owners` and `verandah keys` manage a running server."""

import json
from pathlib import Path

import pytest

from adapters_store.store import AdapterStore
from server.__main__ import main
from server.jobs.queue.quotas import Quotas
from server.tenancy.key_watch import watching_keys
from server.tenancy.keys import Keys
from server.tenancy.principal import SERVER_ADMIN
from server.wiring import owner_removal
from server.wiring.building import Records
from server.wiring.owner_removal import removing_owners
from tests.api.running import Publish, Running, Serve


@pytest.fixture
def locked(serve: Serve, server: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("VERANDAH_API_KEY", "the key")
    return serve(keys=Keys("the key", server.services.tenants.keys))


def test_from_a_new_owner_to_a_revoked_key(
    locked: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    def verandah(*arguments: str) -> str:
        assert main([*arguments, "--url", locked.url]) == 0
        return capsys.readouterr().out

    assert verandah("owners", "create", "Team-A") == "team-a: active\n"
    assert "team-a\tTeam-A\tactive" in verandah("owners")
    told = verandah(
        *("keys", "create", "--owner", "team-a", "--name", "laptop"),
        *("--scopes", "models.use, files", "--expires", "30d"),
    )
    first, value = told.splitlines()[0], told.splitlines()[-1]
    key_id = first.partition(" ")[0]
    assert first == f"{key_id} of 'laptop' may: models.use, files"
    assert locked.http.get("/v1/files", headers={"authorization": f"Bearer {value}"}).is_success
    row = verandah("keys", "list", "--owner", "team-a").splitlines()[1].split("\t")
    assert row[:4] == [key_id, "laptop", f"{value[:9]}...", "models.use,files"]
    options = "--owner", "team-a", "--json"
    rotated = json.loads(verandah("keys", "rotate", key_id, "--grace", "2h", *options))
    assert rotated["replaces"]["id"] == key_id and rotated["scopes"] == ["models.use", "files"]
    assert 7190 <= rotated["replaces"]["expires_at"] - rotated["created_at"] <= 7200
    assert verandah("keys", "revoke", key_id, "--owner", "team-a") == f"revoked {key_id}\n"
    left = json.loads(verandah("keys", "list", *options))
    assert [key["id"] for key in left] == [rotated["id"]]
    assert verandah("owners", "archive", "team-a") == "team-a: archived\n"


def test_an_owner_is_deleted_while_the_command_waits(
    locked: Running,
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(owner_removal, "_KEYS_GONE_S", 2)
    services = locked.services
    services.tenants.owners.create("team-a")
    publish("pirate", "team-a")
    key = services.tenants.keys.create("team-a", "boss", by=SERVER_ADMIN, scopes=["admin"])[1]
    url = "--url", locked.url
    assert main(["owners", "delete", "team-a", *url]) == 2
    assert "give --yes" in capsys.readouterr().err
    boss = {"authorization": f"Bearer {key}"}
    project = "/v1/organization/projects/team-a"
    assert locked.http.delete(project, headers=boss).status_code == 403
    admin = {"authorization": "Bearer the key"}
    assert locked.http.get(f"{project}/deletion", headers=admin).status_code == 404
    database = services.tenants.shares._database
    adapters = services.adapters
    assert isinstance(adapters, AdapterStore)
    records = Records(database, adapters, services.files, services.jobs, Quotas())
    with (
        watching_keys(services.keys, refresh_s=0.1),
        removing_owners(records, tmp_path, services.residency.forget, every_s=0.05),
    ):
        assert main(["owners", "delete", "team-a", "--export", "kept", "--yes", *url]) == 0
        assert capsys.readouterr().out.endswith("team-a: deleted\n")
    assert locked.http.get(project, headers=boss).status_code == 401
    told = locked.http.get(f"{project}/deletion", headers=admin).json()
    assert told["left"] == {"adapters": 0, "files": 0, "jobs": 0} and told["export"] == "kept"
    assert [ref.owner for ref in locked.residency.forgotten] == ["team-a"]
    assert (tmp_path / "exports" / "kept" / "adapters" / "pirate" / "1").is_dir()
    listed = locked.http.get(f"{project.rpartition('/')[0]}?include_archived=true", headers=admin)
    assert [it["status"] for it in listed.json()["data"]] == ["active", "deleted"]


def test_an_adapter_is_shared_copied_and_shared_no_more(
    locked: Running,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def verandah(*arguments: str) -> str:
        assert main(["adapters", *arguments, "--url", locked.url]) == 0
        return capsys.readouterr().out

    for owner in ("team-a", "team-b"):
        locked.services.tenants.owners.create(owner)
    publish("pirate", "team-b")
    book = locked.services.tenants.keys
    keys = {it: book.create(it, "bot", by=SERVER_ADMIN)[1] for it in ("team-a", "team-b")}
    monkeypatch.setenv("VERANDAH_API_KEY", keys["team-b"])
    told = verandah("share", "pirate", "--with", "Team-A", "--to", "copy")
    assert told == "pirate is shared with team-a to copy\n"
    assert "pirate\tteam-b\tteam-a\tcopy" in verandah("shares")
    monkeypatch.setenv("VERANDAH_API_KEY", keys["team-a"])
    assert "team-b/pirate" in verandah() and "shared to copy" in verandah()
    assert "team-b/pirate\tteam-b\tteam-a\tcopy" in verandah("shares")
    assert "owner" in verandah("show", "team-b/pirate")
    told = verandah("copy", "team-b/pirate", "--as", "mine")
    assert told == "team-b/pirate is copied to mine@1\n"
    monkeypatch.setenv("VERANDAH_API_KEY", keys["team-b"])
    told = verandah("unshare", "pirate", "--with", "team-a")
    assert told == "pirate is no longer shared with team-a\n"
    again = "adapters", "unshare", "pirate", "--with", "team-a", "--url", locked.url
    assert main([*again]) == 2
    assert "not shared with team-a" in capsys.readouterr().err


def test_limits_are_set_shown_and_taken_back(
    locked: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    def limits(*arguments: str) -> str:
        assert main(["owners", "limits", "default", *arguments, "--url", locked.url]) == 0
        return capsys.readouterr().out

    shown = limits("--requests-a-minute", "600", "--files", "50", "--weight", "2.5")
    assert "requests_a_minute\t600\n" in shown and "weight\t2.5\n" in shown
    assert "files\t50\n" in limits() and "adapters\tnone\n" in limits()
    limits("--files", "none", "--weight", "server")
    kept = json.loads(limits("--json"))
    assert (kept["requests_a_minute"], kept["files"], kept["weight"]) == (600, 0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["owners", "create"], "needs an owner"),
        (["adapters", "share", "pirate"], "needs --with"),
        (["adapters", "copy", "pirate"], "needs --as"),
        (["owners", "limits", "a", "--files", "-1"], "--files"),
        (["owners", "limits", "a", "--files", "1.5"], "--files '1.5' is no limit"),
        (["owners", "limits", "a", "--weight", "inf"], "--weight 'inf' is no limit"),
        (["owners", "archive", "a", "--files", "1"], "--files goes with"),
        (["keys", "create"], "needs --name"),
        (["keys", "revoke"], "needs a key's id"),
        (["keys", "create", "--name", "a", "--expires", "soon"], "--expires 'soon' is not a time"),
        (["keys", "rotate", "key_1", "--grace", "-1s"], "--grace"),
    ],
)
def test_a_wrong_argument_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(arguments) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("how", [(), ("--no-browser",)])
def test_login_to_a_server_without_sign_in_ends_at_once(
    how: tuple[str, ...], server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["login", *how, "--url", server.url]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("verandah: this server has no sign-in: whoever runs it starts it")
