"""The databases that tenants are tested on."""

from tests.db.conftest import database, url

__all__ = ["database", "url"]
