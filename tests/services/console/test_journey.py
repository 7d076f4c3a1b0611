"""From an empty server to a compared adapter, as a person clicks it; and all links on the way."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.services.console.conftest import PHONE, Console, OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

QUESTION = "How do I get to the market?"
BETTER = "Arr, sail north to the market, matey, yo ho!"
TRAINED = 90_000  # milliseconds until a job has ended, on a busy machine
_LINK = re.compile(r'(?:href|src)="(/[^"]*)"')


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A server that has nothing yet."""
    running = Console(tmp_path_factory.mktemp("journey") / "home")
    yield running
    running.stop()


@pytest.fixture
def page(open_page: OpenPage, empty: Console) -> Page:
    """A person opens the address that the server printed."""
    return open_page("/", url=empty.url)


def test_from_an_empty_server_to_a_compared_adapter(page: Page, tmp_path: Path) -> None:
    expect(page).to_have_url(re.compile("/console$"))
    _look_at_bad_lines(page, tmp_path)
    _train_the_sample(page)
    _compare(page)
    _train_on_a_correction(page)
    _go_back_to_the_first_version(page)
    _share(page)
    _see_the_usage(page)
    _make_a_key(page)


def _look_at_bad_lines(page: Page, folder: Path) -> None:
    good = [json.dumps({"prompt": f"Question {n}?", "completion": f" {n}"}) for n in range(11)]
    file = folder / "mine.jsonl"
    file.write_text("\n".join([*good[:3], "{no JSON", *good[3:]]))
    _go(page, "Data")
    expect(page.get_by_role("heading", name="No files yet")).to_be_visible()
    page.get_by_label("Drop a JSONL file here").set_input_files(file)
    check = page.get_by_role("region", name=re.compile("^Check"))
    expect(check.get_by_role("row", name=re.compile("^4 is not JSON"))).to_be_visible()
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    check.get_by_role("button", name="Keep the good lines as a new file").click()
    expect(page.get_by_role("heading", name="mine-good.jsonl")).to_be_visible()
    expect(check.get_by_text("ready to train")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="mine.jsonl")).to_be_visible()


def _train_the_sample(page: Page) -> None:
    _go(page, "Home")
    page.get_by_role("link", name="Try the sample").click()
    page.get_by_role("button", name="Add the sample").click()
    name = page.get_by_label("Name", exact=True)
    name.fill("no name!")
    start = page.get_by_role("button", name="Start training")
    expect(page.get_by_text("'no name!' is not a name")).to_be_visible()
    expect(start).to_be_disabled()
    name.fill("pirate")
    start.click()
    expect(page.get_by_role("heading", name="pirate")).to_be_visible()
    curve = page.get_by_role("img", name=re.compile("Loss by step, [1-9]"))
    expect(curve).to_be_visible(timeout=TRAINED)
    page.reload()
    expect(page.get_by_role("heading", name="Better than the base")).to_be_visible(timeout=TRAINED)
    expect(page.get_by_role("heading", name="Sample answers")).to_be_visible()


def _compare(page: Page) -> None:
    page.get_by_role("link", name="Compare with the base").first.click()
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Ask 2 models").click()
    answers = page.get_by_role("article")
    expect(answers).to_have_count(2)
    for answer in answers.all():
        expect(answer.get_by_text("done")).to_be_visible()
    expect(answers.nth(1).get_by_text("Parts from base")).to_be_visible()
    answers.nth(1).get_by_role("button", name="Bad").click()
    answers.nth(1).get_by_role("textbox").fill(BETTER)
    answers.nth(1).get_by_role("button", name="Add to training lines").click()
    page.reload()  # the models, the question and the line are there again; nothing is asked
    expect(page.get_by_label("Your question")).to_have_value(QUESTION)
    expect(page.get_by_role("button", name="Ask 2 models")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text=BETTER)).to_be_visible()


def _train_on_a_correction(page: Page) -> None:
    page.get_by_text("Add to a file that you have").click()
    files = page.get_by_label("File", exact=True)
    expect(files.get_by_role("option", name="sample.jsonl")).to_have_count(1)
    files.select_option(label=files.get_by_role("option", name="sample.jsonl").inner_text())
    page.get_by_role("button", name="Make a new file of both").click()
    expect(page.get_by_role("heading", name="sample-and-1.jsonl")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("pirate")
    page.get_by_label("Begin with").fill("pirate")
    page.get_by_text("More options").click()
    page.get_by_label("Epochs").fill("1")
    page.get_by_label("Learning rate").fill("0.001")
    expect(page.get_by_text("1 of 13 steps")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    see = page.get_by_role("link", name="See the adapter")
    expect(see).to_be_visible(timeout=TRAINED)
    see.click()


def _go_back_to_the_first_version(page: Page) -> None:
    versions = page.get_by_role("region", name="Versions").get_by_role("row")
    before = versions.count()
    versions.last.get_by_role("button", name="Make latest").click()
    expect(versions).to_have_count(before + 1)
    expect(versions.nth(1)).to_contain_text("copy of pirate@2")


def _share(page: Page) -> None:
    receiver = page.get_by_role("textbox", name="Share with")
    receiver.fill("nobody-here")
    page.get_by_role("button", name="Share", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("'nobody-here' does not exist")
    expect(receiver).to_have_value("nobody-here")  # to be mended, not typed again
    for _ in range(2):  # the second time, the address has the fragment already
        receiver.fill("all")
        page.get_by_role("button", name="Share", exact=True).click()
        end = page.get_by_role("button", name="End the share with all owners")
        expect(end).to_be_visible()
        end.click()
        expect(page.get_by_text("Only you can use it.")).to_be_visible()


def _see_the_usage(page: Page) -> None:
    _go(page, "Usage")
    expect(page.get_by_role("row", name=re.compile("^ *pirate 1 "))).to_be_visible()


def _make_a_key(page: Page) -> None:
    _go(page, "Keys")
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Create the key").click()
    expect(page.get_by_role("heading", name="Key “laptop” is made")).to_be_focused()
    expect(page.get_by_role("heading", name="No keys yet")).to_be_hidden()
    page.get_by_role("link", name="I have copied it").click()
    expect(page.get_by_role("link", name="laptop")).to_be_visible()


def _go(page: Page, section: str) -> None:
    page.get_by_role("navigation", name="Console").get_by_role("link", name=section).click()


def test_by_keyboard_alone(page: Page) -> None:
    """A question to the base and the adapter, and the adapter's end."""
    _tab_to(page, "Compare")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()
    expect(page.get_by_role("button", name="pirate", exact=True)).to_be_visible()
    _tab_to(page, "pirate")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Ask 2 models")).to_be_visible()
    while page.evaluate("document.activeElement.id") != "prompt":
        page.keyboard.press("Tab")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("article").get_by_text("done")).to_have_count(2)
    _tab_to(page, "Adapters")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Adapters", exact=True)).to_be_visible()
    _tab_to(page, "pirate")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Versions")).to_be_visible()
    _tab_to(page, "Delete")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Delete pirate?")
    expect(dialog.get_by_text("2 times in the last 30 days")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def _tab_to(page: Page, words: str) -> None:
    """Press Tab until what has these words has the focus."""
    found = "document.activeElement.innerText?.trim()"
    seen = []
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(found))
        if seen[-1] == words:
            return
    raise AssertionError(f"no Tab leads to {words!r}, only to {seen}")


def test_the_whole_navigation_is_seen_on_a_phone(open_page: OpenPage, empty: Console) -> None:
    for path in ("/console/keys", "/console/admin/keys"):
        page = open_page(path, PHONE, empty.url)
        for link in page.get_by_role("navigation").get_by_role("link").all():
            box = link.bounding_box()
            assert box is not None
            assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE[0], link.inner_text()


def test_every_link_leads_somewhere(empty: Console) -> None:
    """All links of the console are followed, as its pages have them after the journey."""
    wrong: dict[str, str] = {}
    seen, found = {"/console"}, [("/console", "the start")]
    with httpx.Client(base_url=empty.url, timeout=60) as http:
        while found:
            path, of = found.pop()
            answer = http.get(path, follow_redirects=True)
            if answer.status_code >= 400:
                wrong[path] = f"{answer.status_code}, linked from {of}"
            if "text/html" not in answer.headers["content-type"]:
                continue
            for link in _LINK.findall(answer.text):
                path_of = link.replace("&amp;", "&").partition("#")[0]
                if path_of not in seen:
                    seen.add(path_of)
                    found.append((path_of, path))
    assert wrong == {}
    for section in ("data/", "jobs/", "adapters/pirate", "keys/", "admin/owners/default"):
        assert any(it.startswith(f"/console/{section}") for it in seen), section
