"""`cache_salt`: who may reuse what was computed for a request."""

import pytest

from tests.api.running import Running

BODIES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": ["hi", "ho"]},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("salt", [None, "s", "x" * 1024, "é\n'"])
def test_it_comes_to_the_engine(server: Running, path: str, salt: str | None) -> None:
    body = {"model": "base", "cache_salt": salt} | BODIES[path]
    assert server.http.post(path, json=body).status_code == 200
    assert {it.cache_salt for it in server.loop.asked} == {salt or ""}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("salt", ["", "x" * 1025, 7, ["s"], {}, True])
def test_what_is_no_salt_is_refused(server: Running, path: str, salt: object) -> None:
    body = {"model": "base", "cache_salt": salt} | BODIES[path]
    answer = server.http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache_salt")
    assert not server.loop.asked


@pytest.mark.parametrize("path", BODIES)
def test_half_a_surrogate_pair_is_refused(server: Running, path: str) -> None:
    body = '{"model": "base", "prompt": "hi", "messages": [], "cache_salt": "\\ud800"}'
    answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "cache_salt" in answer.text
