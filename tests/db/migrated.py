"""New databases for tests that are not about migrations."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from server.db.session import Database


def migrated(url: str, **options: Any) -> Database:
    """A database with this build's tables; `options` as `Database` takes them."""
    database = Database(url, **options)
    if not url.startswith("sqlite:///"):
        database.migrate()
        return database
    path = Path(url.removeprefix("sqlite:///"))
    if not path.exists():
        path.write_bytes(_new())
    return database


@cache
def _new() -> bytes:
    """SQLite's file: to migrate for each test takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new.db"
        database = Database(f"sqlite:///{path}")
        database.migrate()
        database.close()
        return path.read_bytes()
