"""The pages of adapters in a real browser: the picture of what changed, and what can be done."""

import re

import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.services.console.conftest import Console, OpenPage
from tests.services.console.full_house import Things

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def taught(console: Console, things: Things) -> str:
    """The name of an adapter with three versions, which its tests may change."""
    with console.http as http:
        for name in ("arr", "arr", "arr", "arr-2"):
            copied = http.post("/v1/adapters/every-page/copy", json={"name": name})
            assert copied.is_success, copied.text
    return "arr"


def analysed(page: Page) -> None:
    expect(page.locator("[data-spectrum] h3")).to_be_visible(timeout=30_000)


def test_what_it_changed_can_be_seen_and_read_by_keyboard(open_page: OpenPage, taught: str) -> None:
    page = open_page(f"/console/adapters/{taught}")
    analysed(page)
    cells = page.locator("#changed [data-results] > [data-map] .cell[role=button]")
    assert cells.count() == 63
    assert re.match(r"layer \d, \w+: [\d.]+%", cells.first.get_attribute("aria-label") or "")
    assert page.locator("#changed .cell[tabindex='0']").count() == 1, "one stop for the tab key"
    cells.first.click()
    expect(page.locator("[data-spectrum] h3")).to_have_text("model.layers.0.self_attn.q_proj")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(page.locator("[data-spectrum] h3")).to_have_text("model.layers.1.self_attn.k_proj")
    assert page.locator("[data-spectrum] .bars rect").count() > 4
    page.get_by_label("Show").first.select_option(label="Size of the update")
    page.locator("#changed [data-results] > details summary").click()
    table = page.locator("#changed [data-results] > details table")
    expect(table.get_by_role("columnheader", name="down_proj")).to_be_visible()
    assert table.get_by_role("row").count() == 10


def test_beside_another_adapter(open_page: OpenPage, taught: str) -> None:
    page = open_page(f"/console/adapters/{taught}")
    analysed(page)
    other = page.get_by_label("Another adapter", exact=True)
    other.fill("nobody")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("[data-compare] [data-said]")).to_contain_text("does not exist")
    other.fill("arr-")
    expect(page.locator("#others option")).to_have_count(1)
    other.fill("arr-2")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("[data-likeness]")).to_contain_text("much the same places", timeout=30_000)
    cell = page.locator("[data-likeness] .cell[aria-label]").first
    assert re.search(r"1\.00, random 0\.\d\d", cell.get_attribute("aria-label") or "")


def test_an_earlier_version_is_made_the_latest_and_one_deleted(
    open_page: OpenPage, console: Console, taught: str
) -> None:
    with console.http as http:
        versions = http.get(f"/v1/adapters/{taught}").json()["versions"]
    page = open_page(f"/console/adapters/{taught}")
    page.get_by_role("button", name="Make latest").last.click()
    expect(page.locator("h1")).to_have_text(f"{taught}@{versions[-1] + 1}")
    page.get_by_role("link", name=f"Delete version {versions[-1]}", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("It cannot be brought back")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("link", name=f"Delete version {versions[-1]}", exact=True).click()
    dialog.get_by_role("button", name="Delete this version").click()
    expect(page.locator("#versions")).not_to_contain_text(f"@{versions[-1]} ")
    with console.http as http:
        assert versions[-1] not in http.get(f"/v1/adapters/{taught}").json()["versions"]


def test_a_whole_adapter_is_deleted_by_typing_its_name(
    open_page: OpenPage, console: Console, taught: str
) -> None:
    with console.http as http:
        http.post(f"/v1/adapters/{taught}/copy", json={"name": "old.one-x"})
    page = open_page("/console/adapters/old.one-x")
    page.get_by_role("link", name="Delete", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label(re.compile("Type old.one-x")).fill("oldxone-x")
    dialog.get_by_role("button", name="Delete old.one-x").click()
    assert page.evaluate("document.querySelector('#confirm:invalid') !== null")
    dialog.get_by_label(re.compile("Type old.one-x")).fill("old.one-x")
    dialog.get_by_role("button", name="Delete old.one-x").click()
    page.wait_for_url("**/console/adapters")
    expect(page.locator("table")).not_to_contain_text("old.one-x")


def test_found_while_typing_and_pinned(open_page: OpenPage, taught: str) -> None:
    page = open_page("/console/adapters")
    page.get_by_label("Find by name").fill("ARR-")
    expect(page.locator("table")).not_to_contain_text("arr@")
    expect(page.get_by_role("link", name=taught, exact=True)).to_be_hidden()
    page.get_by_role("link", name="arr-2").click()
    page.get_by_role("button", name=re.compile("^Pin @")).click()
    expect(page.locator("#place")).to_contain_text("pinned")
    expect(page.locator("#place")).to_contain_text("in main memory", timeout=15_000)
    page.get_by_role("button", name=re.compile("Unpin @")).click()
    expect(page.locator("#place")).not_to_contain_text("pinned")


def test_a_wrong_import_says_why(open_page: OpenPage) -> None:
    page = open_page("/console/adapters/-/import")
    page.get_by_label("Name").fill("mine")
    for name, content in (("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"w")):
        file = FilePayload(name=name, mimeType="application/octet-stream", buffer=content)
        page.get_by_label(name).set_input_files(file)
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("alert")).to_contain_text("peft_type")
