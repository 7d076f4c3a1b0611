"""A real uvicorn in a thread, whose application can be exchanged, and clients of it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from openai import OpenAI
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters_store.manifest import AdapterRef
from server.api.app_services import Services
from server.api.connections import ConnectionLimits, http_protocol
from server.app import describe
from tests.api.fakes import FakeLoop, FakeResidency

LIMITS = ConnectionLimits()


class Host:
    """Serves whatever `app` is at the moment; starting a server for every test would take longer
    than the tests.
    """

    def __init__(self, url: str, sdk: OpenAI, http: httpx.Client) -> None:
        self.url = url
        self.sdk = sdk
        self.http = http
        self.app: ASGIApp | None = None


@dataclass(frozen=True)
class Running:
    """A running server, its services, and clients to call it with."""

    url: str
    services: Services
    loop: FakeLoop
    residency: FakeResidency
    sdk: OpenAI
    http: httpx.Client


Serve = Callable[..., Running]
Publish = Callable[..., AdapterRef]


@contextmanager
def hosting(limits: ConnectionLimits = LIMITS) -> Iterator[Host]:
    """A host on a free port."""
    host: Host | None = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert host is not None and host.app is not None
        await host.app(scope, receive, send)

    protocol = http_protocol(describe, limits)
    config = uvicorn.Config(
        app, port=0, http=protocol, ws="none", log_level="critical", lifespan="off"
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    assert eventually(lambda: web.started)
    url = f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    with (
        OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=10) as sdk,
        httpx.Client(base_url=url, timeout=10) as http,
    ):
        host = Host(url, sdk, http)
        yield host
    web.should_exit = True
    thread.join(10)


def eventually(condition: Callable[[], bool], timeout_s: float = 5) -> bool:
    """Wait until the condition holds; False if it never did. Looks less often as time goes by."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < timeout_s:
        if condition():
            return True
        time.sleep(min(0.01 + waited / 20, 0.2))
    return condition()
