"""`verandah owners` and `verandah keys` manage a running server."""

import json

import pytest

from server.__main__ import main
from server.tenancy.keys import Keys
from tests.api.running import Running, Serve


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
