"""What a browser asks before and with a page's requests, and what it gets."""

import httpx
import pytest

from server.tenancy.keys import Keys
from tests.api.running import Running, Serve

PAGE, OTHER = "https://chat.example.com", "https://other.example.com"


def preflight(server: Running, origin: str, method: str = "POST", **more: str) -> httpx.Response:
    asked = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
        **more,
    }
    return server.http.options("/v1/chat/completions", headers=asked)


def test_none_is_allowed_by_default(server: Running) -> None:
    assert preflight(server, PAGE).status_code == 405
    answer = server.http.get("/v1/models", headers={"origin": PAGE})
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(("origins", "told"), [((PAGE, "null"), PAGE), (("*",), "*")])
def test_a_preflight_needs_no_key(serve: Serve, origins: tuple[str, ...], told: str) -> None:
    server = serve(keys=Keys("secret"), allowed_origins=origins)
    for method in ("GET", "POST", "DELETE"):
        answer = preflight(server, PAGE, method)
        assert answer.status_code == 200, answer.text
        headers = answer.headers
        assert headers["access-control-allow-origin"] == told
        assert method in headers["access-control-allow-methods"]
        assert "authorization" in headers["access-control-allow-headers"]
        assert headers["x-request-id"]
    local = preflight(server, PAGE, **{"access-control-request-private-network": "true"})
    assert local.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in local.headers


def test_answers_and_errors_can_be_read_with_their_ids(serve: Serve) -> None:
    server = serve(keys=Keys("secret"), allowed_origins=(PAGE,))
    key = {"authorization": "Bearer secret"}
    for path, more, status in (
        ("/v1/models", key, 200),
        ("/v1/models", {}, 401),
        ("/v1/models/nobody", key, 404),
        ("/nowhere", {}, 404),
        ("/health", {}, 200),
    ):
        answer = server.http.get(path, headers={"origin": PAGE, **more})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    said = server.http.post("/v1/chat/completions", headers={"origin": PAGE, **key}, json=body)
    assert said.headers["access-control-allow-origin"] == PAGE and "[DONE]" in said.text


def test_other_origins_and_methods_are_refused_by_name(serve: Serve) -> None:
    server = serve(allowed_origins=(PAGE,))
    for origin in (OTHER, f"{PAGE}:8443", "null", PAGE.upper(), "x" * 5000):
        refused = preflight(server, origin)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
        error = refused.json()["error"]
        assert error["code"] == "invalid_value" and len(error["message"]) < 300
        assert "start it with the origin in --allowed-origins" in error["message"]
    wrong = preflight(server, PAGE, "PATCH").json()["error"]
    assert wrong["message"] == "method 'PATCH' is not allowed: send GET, POST, DELETE"
    plain = server.http.get("/v1/models", headers={"origin": OTHER})
    assert plain.status_code == 200 and "access-control-allow-origin" not in plain.headers
    bare = server.http.options("/v1/models", headers={"origin": PAGE})
    assert bare.status_code == 405
