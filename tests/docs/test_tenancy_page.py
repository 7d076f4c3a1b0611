"""The commands of docs/tenancy.md, one after another, as a new operator types them."""

import re
import shlex
from pathlib import Path

import pytest

from server.__main__ import main
from server.tenancy.keys import Keys
from server.tenancy.principal import DEFAULT_OWNER
from tests.api.conftest import empty_database, host, publish, serve, server, services, store
from tests.api.running import Publish, Running, Serve

__all__ = ["empty_database", "host", "publish", "serve", "server", "services", "store"]

PAGE = Path(__file__).parents[2] / "docs" / "tenancy.md"
COMMANDS = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    ")]
# They need a whole server, which other tests have: tests/cli/test_serve.py, for one.
NOT_HERE = ("export", "verandah serve", "verandah train", "verandah chat", "verandah owners delet")


@pytest.fixture
def locked(serve: Serve, server: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    locked = serve(keys=Keys("the key", server.services.tenants.keys))
    monkeypatch.setenv("VERANDAH_API_KEY", "the key")
    monkeypatch.setenv("VERANDAH_URL", locked.url)
    return locked


def test_the_page_can_be_followed(
    locked: Running, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("pirate")
    run = [line for line in COMMANDS if not line.startswith(NOT_HERE)]
    assert len(run) > 12
    values: dict[str, str] = {}
    for line in run:
        key_id = next(iter(values), "")  # of the first key that the page makes
        assert main(shlex.split(line.replace("KEY_ID", key_id))[1:]) == 0, line
        told = capsys.readouterr().out
        assert told, line
        if " keys create " in line:
            values[told.partition(" ")[0]] = told.splitlines()[-1]
    statuses = [
        locked.http.get("/v1/models", headers={"authorization": f"Bearer {value}"}).status_code
        for value in values.values()
    ]
    # Team A's first key is revoked, team B is archived, and the last may not use models.
    assert statuses == [401, 401, 200, 403]
    owners, _ = locked.services.tenants.owners.list(archived=True)
    states = {owner.id: owner.status for owner in owners}
    assert states == {DEFAULT_OWNER: "active", "team-a": "active", "team-b": "archived"}


def test_every_command_of_the_page_is_known() -> None:
    for line in COMMANDS:
        assert re.match(r"export VERANDAH_[A-Z_]+=|verandah [a-z]+", line), line
