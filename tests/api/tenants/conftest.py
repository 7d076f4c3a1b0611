"""A town of two teams, and requests of the matrix to its server."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.api.app_services import Services
from server.app import create_app
from server.tenancy.principal import DEFAULT_OWNER, SERVER_ADMIN
from tests.api.tenants.asgi import Answer, Caller, calling
from tests.api.tenants.rows import Row
from tests.api.tenants.town import Team, Town

Send = Callable[..., Answer]


@pytest.fixture
def town(services: Services, tmp_path: Path) -> Iterator[Town]:
    town = Town(services, tmp_path)
    yield town
    town.database.close()


@pytest.fixture
def call(town: Town) -> Iterator[Caller]:
    with calling(create_app(town.services)) as call:
        yield call


@pytest.fixture
def team(town: Town) -> Team:
    """The team whose things are asked for."""
    team = town.add_team("team-a")
    key, _ = town.services.tenants.keys.create(
        DEFAULT_OWNER, "ops", by=SERVER_ADMIN, scopes=(), kind="admin"
    )
    team.ids["admin_key"] = key.id
    return team


@pytest.fixture
def rival(town: Town, team: Team) -> Team:
    """Another team."""
    return town.add_team("team-b")


@pytest.fixture
def send(call: Caller, team: Team) -> Send:
    """Sends an operation's request of the matrix, about the team's things, with a key."""

    def send(operation: str, row: Row, key: str | None) -> Answer:
        method = operation.partition(" ")[0]
        options: dict[str, Any] = {}
        if row.body is not None:
            options["json"] = filled(row.body, team.ids)
        if row.files is not None:
            options |= {"files": row.files, "data": row.form}
        return call(method, filled(row.target, team.ids), key=key, **options)

    return send


def filled(value: Any, ids: dict[str, str]) -> Any:
    """With the ids in the place of `<kind>`, in all texts."""
    if isinstance(value, dict):
        return {name: filled(one, ids) for name, one in value.items()}
    if isinstance(value, str):
        return re.sub(r"<([\w ]+)>", lambda found: ids[found[1]], value)
    return value
