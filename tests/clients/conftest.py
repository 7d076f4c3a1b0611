"""The client's tests talk to the API's test server."""

from tests.api.conftest import empty_database, host, publish, serve, server, services, store

__all__ = ["empty_database", "host", "publish", "serve", "server", "services", "store"]
