"""Keys and owners, made and revoked by a person who clicks."""

import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.services.console.conftest import Console, OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]


def unfold(page: Page, title: str) -> None:
    """Lists that are empty show their form at once."""
    if page.locator("details:not([open]) > summary", has_text=title).count():
        page.locator("summary", has_text=title).click()


def test_a_key_is_made_copied_used_and_revoked(console: Console, open_page: OpenPage) -> None:
    page = open_page("/console/keys")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    unfold(page, "New key")
    page.get_by_label("Name", exact=True).fill("<img src=x onerror=alert(1)>")
    page.get_by_label("models.use").uncheck()
    page.get_by_role("button", name="Create the key").click()
    expect(page.get_by_role("alert")).to_contain_text("no box is ticked")
    page.get_by_label("files").check()
    page.get_by_role("button", name="Create the key").click()
    heading = page.get_by_role("heading", name=re.compile("is made"))
    expect(heading).to_be_focused()
    page.get_by_role("button", name="Copy", exact=True).first.click()
    value = page.evaluate("navigator.clipboard.readText()")
    header = {"authorization": f"Bearer {value}"}
    assert httpx.get(f"{console.url}/v1/files", headers=header).status_code == 200
    page.get_by_role("link", name="I have copied it").click()
    expect(page.get_by_text(value)).to_have_count(0)
    page.get_by_role("link", name="<img src=x").first.click()
    revoke = page.get_by_role("button", name="Revoke the key for good")
    expect(revoke).not_to_be_visible()
    page.get_by_text("Revoke it").click()
    revoke.click()
    expect(page.get_by_role("status").filter(has_text="The key is revoked")).to_be_visible()
    expect(page.get_by_role("link", name="<img src=x")).to_have_count(0)


@pytest.mark.parametrize("scripts", [True, False])
def test_a_program_gets_one_key_whatever_is_reloaded(
    console: Console, open_page: OpenPage, scripts: bool
) -> None:
    browser = open_page("/console").context.browser
    assert browser is not None
    context = browser.new_context(java_script_enabled=scripts)
    try:
        page = context.new_page()
        page.goto(f"{console.url}/console/keys/programs")
        unfold(page, "New service account")
        page.get_by_label("Name", exact=True).fill(f"scripts: {scripts}")
        page.get_by_role("button", name="Create").click()
        expect(page.get_by_role("heading", name=re.compile("is made"))).to_be_visible()
        if scripts:
            page.reload()
            expect(page.get_by_role("link", name=f"scripts: {scripts}")).to_be_visible()
    finally:
        context.close()
    accounts = "/v1/organization/projects/default/service_accounts"
    names = [it["name"] for it in httpx.get(console.url + accounts).json()["data"]]
    assert names.count(f"scripts: {scripts}") == 1


def test_an_owner_is_made_limited_and_deleted(console: Console, open_page: OpenPage) -> None:
    page = open_page("/console/admin/owners")
    unfold(page, "New owner")
    page.get_by_label("Name", exact=True).fill("browser-team")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="browser-team")).to_be_visible()
    page.get_by_label("Files", exact=True).fill("-5")
    page.get_by_role("button", name="Save the limits").click()
    expect(page.get_by_role("alert")).to_contain_text("-5")
    page.get_by_label("Files", exact=True).fill("7")
    page.get_by_role("button", name="Save the limits").click()
    expect(page.get_by_label("Files", exact=True)).to_have_value("7")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.locator("summary", has_text="Delete it").click()
    page.get_by_label(re.compile("^Type browser-team")).fill("browser-team")
    page.get_by_role("button", name="Delete browser-team for good").click()
    expect(page.get_by_text("All is gone")).to_be_visible(timeout=60_000)
