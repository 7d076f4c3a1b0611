"""People sign in to the console by a real provider, in a real browser."""

import re
import time

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.services.conftest import KEY, PASSWORD, Regroup
from tests.services.console.conftest import PHONE, OpenPage

pytest.importorskip("authlib", reason="authlib is not installed: it comes with the extra oidc")
pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


def sign_in(page: Page, name: str) -> None:
    """From the sign-in page over the provider to the choice of an owner."""
    page.get_by_role("link", name="Sign in with your provider").click()
    for field, value in (("login", name), ("password", PASSWORD)):
        page.locator(f'input[name="{field}"]').fill(value)
        page.keyboard.press("Enter")
    heading = page.get_by_role("heading", name="Whose things do you want to see?")
    accept = page.locator('button[value="accept"]')  # whether we may know name and groups
    expect(heading.or_(accept)).to_be_visible()
    if accept.is_visible():
        accept.click()
    expect(heading).to_be_visible()


def key_in(page: Page) -> str:
    return next(it["value"] for it in page.context.cookies() if "console" in it["name"])


def refused(server: str, key: str) -> bool:
    """Whether the server comes to refuse a key; within a second, on a machine that is not busy."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        header = {"authorization": f"Bearer {key}"}
        if httpx.get(f"{server}/v1/models", headers=header).status_code == 401:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("size", [(1440, 900), PHONE])
def test_sign_in_choose_use_switch_and_sign_out(
    server: str,
    open_page: OpenPage,
    provider: tuple[dict[str, str], Regroup],
    size: tuple[int, int],
) -> None:
    provider[1]("ann", "team-a,team-b")
    page = open_page("/console/keys", size, server)
    sign_in(page, "ann")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.get_by_role("button", name=re.compile("^b as its admin")).click()
    expect(page).to_have_url(f"{server}/console/keys")
    expect(page.get_by_role("heading", name="Keys of b")).to_be_visible()
    first = key_in(page)
    assert not refused_now(server, first)

    page.get_by_role("link", name="Switch owner").click()
    page.get_by_role("button", name=re.compile("^a as a member")).click()
    expect(page).to_have_url(f"{server}/console")
    expect(page.get_by_text("Member", exact=True).first).to_be_attached()
    expect(page.get_by_role("link", name="Keys")).to_have_count(0)
    second = key_in(page)
    assert refused(server, first)
    assert page.evaluate("fetch('/console/v1/models').then((it) => it.status)") == 200

    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{server}/console/sign-in")
    assert page.context.cookies(server) == []
    assert refused(server, second)
    page.goto(f"{server}/console/sign-in/choose")
    expect(page).to_have_url(f"{server}/console/sign-in")


def refused_now(server: str, key: str) -> bool:
    header = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{server}/v1/models", headers=header).status_code == 401


def test_the_servers_admin_sees_all_owners(server: str, open_page: OpenPage) -> None:
    page = open_page("/console/admin/owners", url=server)
    sign_in(page, "root")
    page.get_by_role("button", name=re.compile("^The whole server")).click()
    expect(page).to_have_url(f"{server}/console/admin/owners")
    for name in ("a", "b", "default"):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()


def test_a_pasted_key_is_kept_by_programs(server: str, open_page: OpenPage) -> None:
    page = open_page("/console/admin", url=server)
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in with the key").click()
    expect(page.get_by_role("heading", name="What runs")).to_be_visible()
    expect(page.get_by_role("link", name="Switch owner")).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    assert not refused_now(server, KEY)
