"""People sign in by a real provider, Canaille, on a server that really runs."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.conftest import PASSWORD, Regroup

pytest.importorskip("authlib", reason="authlib is not installed: it comes with the extra oidc")
pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    with httpx.Client(follow_redirects=True, timeout=30) as client:
        yield client


def open_as(browser: httpx.Client, name: str, address: str) -> httpx.Response:
    """Open an address, and type the name and the password where the provider asks for them."""
    page = browser.get(address)
    for field, value in (("login", name), ("password", PASSWORD)):
        if f'name="{field}"' in page.text:
            page = browser.post(page.url, data={field: value})
    if "oauth" in page.url.path:  # it asks whether we may know the name and the groups
        page = browser.post(page.url, data={"answer": "accept"})
    return page


def session_of(browser: httpx.Client, server: str) -> dict[str, Any]:
    return dict(browser.get(f"{server}/auth/session").json())


def test_a_browser_signs_in_with_groups(
    server: str, browser: httpx.Client, provider: tuple[dict[str, str], Regroup]
) -> None:
    provider[1]("ann", "team-a")
    page = open_as(browser, "ann", f"{server}/auth/login?next=/health")
    assert page.url == f"{server}/health" and page.is_success, page.text
    who = session_of(browser, server)
    assert who["user"]["name"] == "Ann"
    assert who["projects"] == [{"id": "a", "role": "member"}]
    provider[1]("ann", "team-b")
    open_as(browser, "ann", f"{server}/auth/login")
    assert session_of(browser, server)["projects"] == [{"id": "b", "role": "admin"}]
    browser.post(f"{server}/auth/logout")
    assert "error" in session_of(browser, server)


def test_whom_no_group_lets_in_stays_outside(server: str, browser: httpx.Client) -> None:
    page = open_as(browser, "eve", f"{server}/auth/login")
    assert page.status_code == 403 and page.json()["error"]["code"] == "sign_in_failed"
    assert "error" in session_of(browser, server)


def test_a_code_is_not_taken_twice(server: str, browser: httpx.Client) -> None:
    page = open_as(browser, "root", f"{server}/auth/login?next=/health")
    callback = next(it for it in page.history if it.url.path == "/auth/callback")
    kept = {"cookie": callback.request.headers["cookie"]}
    again = httpx.get(callback.url, headers=kept)
    assert again.status_code == 403 and again.json()["error"]["code"] == "sign_in_failed"


def test_the_command_gets_a_key_and_gives_it_back(
    server: str, browser: httpx.Client, variables: dict[str, str]
) -> None:
    def verandah(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "server", *arguments, "--url", server]
        return subprocess.run(command, env=variables, capture_output=True, text=True)

    assert "verandah login" in verandah("owners").stderr
    with subprocess.Popen(
        [sys.executable, "-m", "server", "login", "--admin", "--url", server],
        env=variables | {"BROWSER": "true"},
        stdout=subprocess.PIPE,
        text=True,
    ) as login:
        assert login.stdout is not None
        address = next(line.strip() for line in login.stdout if "/auth/login?" in line)
        page = open_as(browser, "root", address)
        if not page.is_success:
            login.kill()
        assert page.text.startswith("You are signed in"), page.text
        told = login.stdout.read().strip()
    assert login.returncode == 0
    assert re.match(r"signed in as .*, for the server's admin, until ", told)
    kept = Path(told.splitlines()[1].partition(" is kept in ")[2])
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "a\ta\tactive" in verandah("owners").stdout
    value = json.loads(kept.read_text())[server]["value"]
    assert verandah("logout").stdout == f"signed out of {server}\n"
    assert value not in kept.read_text() and "verandah login" in verandah("owners").stderr
    bearer = {"authorization": f"Bearer {value}"}
    deadline = time.monotonic() + 5  # within a second, on a machine that is not busy
    while httpx.get(f"{server}/v1/models", headers=bearer).status_code != 401:
        assert time.monotonic() < deadline, "the server still takes the key"
        time.sleep(0.1)
