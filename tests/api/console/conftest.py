"""A server with a key, and browsers of people who may do everything, some things and nothing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from server.tenancy.keys import Keys
from server.tenancy.principal import SERVER_ADMIN, Scope
from tests.api.running import Running, Serve

SERVER_KEY = "the-servers-own-key"
Browser = Callable[[str | None], httpx.Client]
MakeKey = Callable[..., str]


@pytest.fixture
def keyed(serve: Serve) -> Running:
    """A server that asks for a key."""
    running = serve()
    return serve(keys=Keys(SERVER_KEY, running.services.tenants.keys))


@pytest.fixture
def make_key(keyed: Running) -> MakeKey:
    """Makes an owner's key of some scopes."""

    def make(owner: str, *scopes: Scope) -> str:
        tenants = keyed.services.tenants
        if owner not in [it.id for it in tenants.owners.list(limit=100)[0]]:
            tenants.owners.create(owner)
        return tenants.keys.create(owner, "laptop", by=SERVER_ADMIN, scopes=scopes)[1]

    return make


@pytest.fixture
def browser(keyed: Running) -> Iterator[Browser]:
    """A browser that is signed in with a key; with None, one that is not."""
    with ExitStack() as stack:

        def opened(key: str | None) -> httpx.Client:
            client = stack.enter_context(httpx.Client(base_url=keyed.url, timeout=10))
            client.headers["sec-fetch-site"] = "same-origin"
            if key is not None:
                answer = client.post("/console/sign-in", data={"key": key})
                assert answer.status_code == 303, answer.text
            return client

        yield opened
