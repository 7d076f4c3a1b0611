"""Databases to test on: SQLite always, PostgreSQL where VERANDAH_TEST_POSTGRES_URL names one."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from server.db.session import Database

POSTGRES_URL = os.environ.get("VERANDAH_TEST_POSTGRES_URL", "")


def postgres_schema() -> Iterator[str]:
    """The URL of a schema of its own, dropped afterwards."""
    if not POSTGRES_URL:
        pytest.skip("VERANDAH_TEST_POSTGRES_URL is not set")
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(POSTGRES_URL)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    yield f"{POSTGRES_URL}?options=-csearch_path%3D{name}"
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new' / 'verandah.db'}"
    else:
        yield from postgres_schema()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    database.migrate()
    yield database
    database.close()
