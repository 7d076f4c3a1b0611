"""The client's tests talk to the API's test server."""

from tests.api.conftest import empty_database, host, parts, publish, serve, server, store

__all__ = ["empty_database", "host", "parts", "publish", "serve", "server", "store"]
