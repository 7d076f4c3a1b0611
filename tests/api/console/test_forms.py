"""Forms that no page has sent: a page says what is wrong, and nothing is kept of them."""

from typing import Any

import pytest

from server.api.app_services import Services
from server.tenancy.keys import Keys
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Running, Serve

PLAIN = {"content-type": "application/x-www-form-urlencoded"}
PARTS = {"content-type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\na\r\n'
UNREADABLE: dict[str, dict[str, Any]] = {
    "a thousand and one fields": {"content": b"a=1&" * 1001, "headers": PLAIN},
    "a thousand and one parts": {"content": PART * 1001 + b"--x--", "headers": PARTS},
    "no parts": {"content": b"junk", "headers": PARTS},
    "no boundary": {"content": b"junk", "headers": {"content-type": "multipart/form-data"}},
}
FORMS = (
    "/console/sign-in",
    "/console/data",
    "/console/data/file-x/train",
    "/console/adapters/-/share/x",
    "/console/keys",
    "/console/keys/members",
    "/console/keys/programs",
)


@pytest.fixture
def keyed(serve: Serve, services: Services) -> Running:
    """With the usual limit of bodies."""
    keys = Keys(SERVER_KEY, services.tenants.keys)
    return serve(keys=keys, max_body_bytes=2 * 2**20)


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_form_is_a_page_that_says_so(
    browser: Browser,
    make_key: MakeKey,
    caplog: pytest.LogCaptureFixture,
    path: str,
    kind: str,
) -> None:
    key = make_key("team-a", "files", "jobs", "adapters.write", "admin")
    answer = browser(key).post(path, **UNREADABLE[kind])
    assert answer.status_code == 400, answer.text
    assert "the form cannot be read" in answer.text and "400 · invalid_value" in answer.text
    assert "Traceback" not in caplog.text, "it is not the server that failed"


@pytest.mark.parametrize("path", FORMS)
def test_a_form_that_no_page_could_send_is_refused_before_it_is_read(
    browser: Browser, make_key: MakeKey, path: str
) -> None:
    """Two million separators would take most of a second."""
    visitor = browser(make_key("team-a", "files", "jobs", "adapters.write", "admin"))
    for content in (b"&" * 70_000, b"key=" + b"a" * 70_000):
        answer = visitor.post(path, content=content, headers=PLAIN)
        assert answer.status_code == 413 and "65536 bytes" in answer.text
        piecewise = visitor.post(path, content=iter([content[:40_000], content]), headers=PLAIN)
        assert piecewise.status_code == 413


def test_the_api_says_what_is_wrong_with_a_form(keyed: Running) -> None:
    """curl says of all bodies that they are forms."""
    headers = {**PLAIN, "authorization": f"Bearer {SERVER_KEY}"}
    answer = keyed.http.post("/v1/completions", content=b"{}" * 40_000, headers=headers)
    assert answer.status_code == 400
    assert "its content-type is not application/json" in answer.json()["error"]["message"]
