"""Databases to test on: SQLite always, PostgreSQL in `make test-services`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db.session import Database
from tests.db.migrated import migrated
from tests.db.postgres import schema_of

ENGINES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.services)]


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new' / 'verandah.db'}"
    else:
        with schema_of(request.getfixturevalue("postgres_url")) as url:
            yield url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = migrated(url)
    yield database
    database.close()
