"""The pages about the API, and what any path answers to any method."""

import re
from collections.abc import Iterator

import httpx
import pytest

from server.tenancy.keys import Keys
from tests.api.running import Publish, Running, Serve


@pytest.fixture
def keyed(serve: Serve) -> Running:
    return serve(keys=Keys("secret"))


def assets(html: str) -> Iterator[str]:
    yield from re.findall(r'(?:src|href)="([^"]+)"', html)


def test_the_page_loads_nothing_from_elsewhere(server: Running) -> None:
    html = server.http.get("/docs").text
    found = list(assets(html))
    assert len(found) == 3
    for asset in found:
        assert asset.startswith("/static-offline-docs/")
        answer = server.http.get(asset)
        assert answer.status_code == 200 and len(answer.content) > 1000
    assert "'/openapi.json'" in html


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_pages_need_no_key(keyed: Running, path: str, method: str) -> None:
    answer = httpx.request(method, keyed.url + path, follow_redirects=True)
    assert answer.status_code == 200
    assert bool(answer.content) == (method == "GET")


def test_the_root_leads_to_the_page(server: Running) -> None:
    answer = httpx.get(server.url + "/")
    assert (answer.status_code, answer.headers["location"]) == (307, "console")


def test_the_page_asks_for_a_key_where_one_is_set(serve: Serve) -> None:
    assert "securitySchemes" not in serve().http.get("/openapi.json").json()["components"]
    keyed = serve(keys=Keys("secret"))
    assert "securitySchemes" in keyed.http.get("/openapi.json").json()["components"]


@pytest.mark.parametrize(
    "path", ["/redoc", "/docs/", "/static-offline-docs/none", "/v2", "/v1/none"]
)
def test_an_unknown_path_is_a_404_in_the_form_of_errors(server: Running, path: str) -> None:
    answer = server.http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/files", "GET, HEAD, POST"),
        ("/v1/files/file-1", "DELETE, GET, HEAD"),
        ("/v1/files/file-1/content", "GET, HEAD"),
        ("/v1/models/pirate@1", "DELETE, GET, HEAD"),
        ("/v1/adapters/import", "POST"),
        ("/v1/adapters/pirate", "DELETE, GET, HEAD"),
        ("/v1/adapters/pirate/pin", "DELETE, GET, HEAD, POST"),  # or the adapter pin of pirate
        ("/v1/fine_tuning/jobs", "GET, HEAD, POST"),
        ("/v1/chat/completions", "POST"),
        ("/health", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
        ("/static-offline-docs/swagger-ui.css", "GET, HEAD"),
        ("/", "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("method", ["OPTIONS", "PATCH", "TRACE"])
def test_a_405_names_all_methods_of_the_path(
    server: Running, method: str, path: str, allowed: str
) -> None:
    answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/pirate", "/health", "/v1/adapters/none"]
)
def test_head_is_get_without_the_body(server: Running, publish: Publish, path: str) -> None:
    publish("pirate")
    got, head = server.http.get(path), server.http.head(path)
    assert head.status_code == got.status_code and head.content == b""
    names = ("content-type", "content-length")
    assert [head.headers[name] for name in names] == [got.headers[name] for name in names]


def test_head_of_a_stream_ends_at_once(server: Running, publish: Publish) -> None:
    ref = publish("pirate")
    path = f"/v1/adapters/{ref.name}/export"
    for _ in range(20):  # more than may be open at a time
        answer = server.http.head(path, timeout=5)
        assert (answer.status_code, answer.content) == (200, b"")
    assert len(server.http.get(path).content) > 0


def test_a_method_without_a_key_is_a_401(keyed: Running) -> None:
    for method in ("HEAD", "OPTIONS", "PATCH"):
        assert httpx.request(method, keyed.url + "/v1/models").status_code == 401
