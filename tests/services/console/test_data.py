"""Adding a file and looking at it, in a real browser with a real server."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.services.console.conftest import Console, OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

PIRATE = Path(__file__).parents[3] / "examples" / "pirate.jsonl"
GOOD = PIRATE.read_bytes().splitlines()
ATTACK = "<img src=x onerror=alert(1)>"
SLOW_MS = 30_000


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    """10,000 lines, of which each 20th is bad."""
    lines = [
        f'{{"messages": "{ATTACK} {number}"}}'.encode()
        if number % 20 == 0
        else GOOD[number % len(GOOD)]
        for number in range(1, 10_001)
    ]
    path = tmp_path / "many lines.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def add(page: Page, path: Path) -> None:
    page.get_by_label("Drop a JSONL file here, or choose one").set_input_files(path)
    expect(page.get_by_role("heading", level=1)).to_have_text(path.name, timeout=SLOW_MS)


def upload(console: Console, content: bytes, name: str) -> str:
    with console.http as http:
        file = http.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, content)}
        )
    return f"/console/data/{file.json()['id']}"


def test_a_chosen_file_is_checked_shown_and_trained_on(
    open_page: OpenPage, console: Console
) -> None:
    page = open_page("/console/data")
    add(page, PIRATE)
    check = page.locator("#check")
    expect(check.get_by_text("ready to train")).to_be_visible(timeout=SLOW_MS)
    expect(check.get_by_text("156 KB")).to_be_visible()
    shown = page.locator("#lines article").first
    expect(shown).to_contain_text("33 of 50 tokens are learnt, 17 only read")
    learnt = "".join(shown.locator("mark .t").all_text_contents())
    assert learnt == json.loads(GOOD[0])["messages"][1]["content"] + "<|im_end|>"
    line = shown.locator("mark .t").first.evaluate("it => getComputedStyle(it).textDecorationLine")
    assert line == "underline"

    page.get_by_text("More options").click()
    page.get_by_label("Epochs").fill("5")
    page.get_by_label("Epochs").press("Tab")
    expect(check).to_contain_text("65 steps of 4 lines", timeout=SLOW_MS)
    expect(page.locator("#code")).to_contain_text('"n_epochs": 5')
    page.get_by_label("Rank").fill("many")
    page.get_by_label("Rank").press("Tab")
    expect(check).to_contain_text("rank='many' is not a whole number", timeout=SLOW_MS)
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    page.get_by_label("Rank").fill("8")
    page.get_by_label("Name", exact=True).fill("data-page")
    page.get_by_label("Name", exact=True).press("Tab")
    start = page.get_by_role("button", name="Start training")
    expect(start).to_be_enabled(timeout=SLOW_MS)
    start.click()
    page.wait_for_url("**/console/jobs/ftjob-*", timeout=SLOW_MS)
    with console.http as http:
        job = http.get(f"/v1/fine_tuning/jobs/{page.url.rpartition('/')[2]}").json()
        http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert (job["user_provided_suffix"], job["verandah"]["rank"]) == ("data-page", 8)


def test_five_hundred_bad_lines_of_ten_thousand(open_page: OpenPage, bad_file: Path) -> None:
    page = open_page("/console/data")
    add(page, bad_file)
    check = page.locator("#check")
    expect(check).to_contain_text("500 lines cannot be trained on", timeout=SLOW_MS)
    rows = check.locator("tbody tr")
    expect(rows).to_have_count(20)
    expect(rows.first).to_contain_text(f'{{"messages": "{ATTACK} 20"}}')
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    check.get_by_role("link", name="Next").click()
    expect(check).to_contain_text("Page 2 of 25", timeout=SLOW_MS)
    expect(rows.first).to_contain_text("420")
    with page.expect_download(timeout=SLOW_MS) as download:
        check.get_by_role("link", name="List as CSV").click()
    assert download.value.path().read_text().count("\n") == 501
    check.get_by_role("button", name="Keep the good lines as a new file").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "many lines-good.jsonl", timeout=SLOW_MS
    )
    expect(check.get_by_text("ready to train")).to_be_visible(timeout=SLOW_MS)
    expect(check).to_contain_text("9,500")


def test_a_dropped_file_and_one_that_is_refused(open_page: OpenPage) -> None:
    page = open_page("/console/data")
    drop = """([name, text]) => {
        const files = new DataTransfer();
        files.items.add(new File([text], name));
        const options = { dataTransfer: files, bubbles: true, cancelable: true };
        document.querySelector(".drop").dispatchEvent(new DragEvent("drop", options));
    }"""
    page.evaluate(drop, ["a.zip", "PK\x03\x04"])
    expect(page.get_by_role("alert")).to_contain_text("compressed with zip", timeout=SLOW_MS)
    expect(page.locator(".drop")).to_be_visible()
    page.get_by_label("Close this notice").click()
    page.evaluate(drop, [ATTACK + ".jsonl", b"\n".join(GOOD).decode()])
    title = page.get_by_role("heading", level=1)
    expect(title).to_have_text(ATTACK + ".jsonl", timeout=SLOW_MS)


def test_the_sample_is_chosen_and_sent_when_asked(open_page: OpenPage) -> None:
    page = open_page("/console/data")
    page.route("**/console/static/sample.jsonl", lambda route: route.fulfill(path=PIRATE))
    page.get_by_role("link", name="Try the sample").first.click()
    page.get_by_role("button", name="Add the sample").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("sample.jsonl", timeout=SLOW_MS)
    expect(page.locator("#check").get_by_text("ready to train")).to_be_visible(timeout=SLOW_MS)


def test_another_line_is_shown_by_keyboard(open_page: OpenPage, console: Console) -> None:
    page = open_page(upload(console, b"\n".join(GOOD), "keys.jsonl"))
    number = page.get_by_label("Line", exact=True)
    expect(number).to_be_visible(timeout=SLOW_MS)
    number.fill("56")
    number.press("Enter")
    expect(page.locator("#lines h3")).to_have_text(["Line 56"], timeout=SLOW_MS)
    page.get_by_role("link", name="Delete").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Delete it").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(console.url + "/console/data", timeout=SLOW_MS)
    expect(page.get_by_text("keys.jsonl")).to_have_count(0)
