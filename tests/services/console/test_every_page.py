"""What holds for every page of a full house: it fits, it is readable by everybody, and the content
policy stops nothing of it."""

import re
from itertools import pairwise

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.services.console.axe import axe_script, grave_violations
from tests.services.console.conftest import PHONE, SERVER_KEY, WIDE, Console, OpenPage
from tests.services.console.full_house import PAGES, Things

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

ZOOMED = (WIDE[0] // 2, WIDE[1] // 2)  # what a page has at 200 %


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_script(tmp_path_factory.mktemp("axe"))


def widths(page: Page) -> dict[int, int]:
    """By the width of the window, that of the page where it is wider."""
    found = {}
    for size in (WIDE, ZOOMED, PHONE):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.wait_for_timeout(60)  # what follows the width draws itself anew
        width = int(page.evaluate("document.documentElement.scrollWidth"))
        if width > size[0]:
            found[size[0]] = width
    page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
    return found


def grave(page: Page, axe: str) -> list[str]:
    """What axe finds in light, and of the colours in dark."""
    page.emulate_media(color_scheme="light")
    found = grave_violations(page, axe)
    page.emulate_media(color_scheme="dark")
    return [*found, *grave_violations(page, axe, only=["color-contrast"])]


STOPS = (
    "main :is(a[href], button:enabled, input:enabled, select:enabled, textarea:enabled, summary)"
    ":not([tabindex='-1'], [type=hidden])"
)
FOCUSED = """() => {
    const it = document.activeElement;
    if (it === document.body) return null;
    const look = getComputedStyle(it.matches(".cell") ? it.querySelector("rect") : it);
    const line = it.matches(".cell") ? look.strokeWidth : look.outlineWidth;
    const seen = it.matches(".cell") || look.outlineStyle !== "none";
    const box = it.getBoundingClientRect();
    it.dataset.reached = "";
    return {html: it.outerHTML.slice(0, 160), line: seen ? parseFloat(line) : 0,
            area: box.width * box.height, below: box.top < innerHeight && box.bottom > 0};
}"""


def check_keyboard(page: Page) -> None:
    """The tab key comes to whatever can be clicked, shows where it is, and leaves the page."""
    page.locator("main").focus()
    for _ in range(250):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused is None:
            break
        assert focused["line"] >= 2 and focused["area"] > 0 and focused["below"], focused
    else:
        raise AssertionError("the tab key never leaves the page")
    missed = page.evaluate(
        "stops => [...document.querySelectorAll(stops)].filter((it) => it.checkVisibility()"
        " && !('reached' in it.dataset)).map((it) => it.outerHTML.slice(0, 160))",
        STOPS,
    )
    assert missed == []


def settled(page: Page) -> None:
    """What a page asks for while it is shown has come."""
    for selector in (".checking", "text=Making tokens of the first lines", "text=Being read…"):
        expect(page.locator(selector)).to_have_count(0, timeout=30_000)
    expect(page.locator("[data-progress]:visible")).to_have_count(0, timeout=30_000)


@pytest.mark.parametrize("path", PAGES)
def test_it_fits_and_axe_finds_nothing_grave(
    open_page: OpenPage, things: Things, axe: str, path: str
) -> None:
    page = open_page(things.path(path))
    settled(page)
    assert page.locator("h1").count() == 1
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].filter((it) => it.checkVisibility())"
        ".map((it) => Number(it.tagName[1]))"
    )
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    assert grave(page, axe) == []
    assert widths(page) == {}
    check_keyboard(page)


def test_titles_say_which_page_it_is(console: Console, things: Things) -> None:
    titles: dict[str, str] = {}
    with console.http as http:
        for path in PAGES:
            answer = http.get(things.path(path))
            found = re.search(r"<title>(.*) · Verandah</title>", answer.text)
            assert found is not None, path
            if answer.is_error:
                assert found[1] == str(answer.status_code)
                continue
            place = path.partition("?")[0]  # what is chosen on a page does not change its title
            assert titles.setdefault(place, found[1]) == found[1], path
    assert len(set(titles.values())) == len(titles), titles


OPENED = {
    "cancelling a job": "/console/jobs/{paused_job}",
    "deleting an adapter": "/console/adapters/every-page",
    "exporting an adapter": "/console/adapters/every-page",
    "editing a training line": "/console/compare?prompt=Hi&max_tokens=5",
    "a new key": "/console/keys?owner={team}",
    "deleting an owner": "/console/admin/owners/{team}",
    "answers": "/console/compare?model=every-page&prompt=Who are you%3F&max_tokens=12",
    "options of a training": "/console/data/{file}",
    "all of a job": "/console/jobs/{job}",
}


@pytest.mark.parametrize("what", OPENED)
def test_so_does_what_opens_on_a_page(
    open_page: OpenPage, things: Things, axe: str, what: str
) -> None:
    page = open_page(things.path(OPENED[what]))
    settled(page)
    unfold(page, what)
    assert grave(page, axe) == []
    assert widths(page) == {}


def unfold(page: Page, what: str) -> None:
    button = page.get_by_role("button", name="Cancel…")
    if what == "cancelling a job":
        button.click()
    elif what == "deleting an adapter":
        page.get_by_role("link", name="Delete", exact=True).click()
        expect(page.get_by_role("dialog")).to_be_visible()
    elif what == "answers":
        answered(page)
        page.get_by_label("Tint tokens by probability").check()
        page.get_by_text("Tokens as a table").first.click()
        page.get_by_role("button", name="Bad").first.click()
        page.locator(".answer .token").nth(1).hover()
    elif what == "editing a training line":
        answered(page)
        page.get_by_role("button", name="Good").click()
        page.get_by_role("button", name="Add to training lines").click()
        page.get_by_role("button", name="Edit").click()
        expect(page.get_by_role("dialog")).to_be_visible()
    elif what == "all of a job":
        page.get_by_role("button", name=re.compile("^Ask every-page@")).first.click()
        open_all(page)
        expect(page.locator("#numbers tbody tr")).not_to_have_count(0)
    else:
        open_all(page)


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('main details').forEach((it) => { it.open = true; })")


def answered(page: Page) -> None:
    page.click("#send")
    expect(page.locator("#status")).to_have_text("All answers are there.", timeout=60_000)


def test_where_a_key_is_needed_and_may_little(
    keyed_console: Console, open_page: OpenPage, axe: str
) -> None:
    """Sign-in, what a key may not see, and the pages of somebody who has nothing yet."""
    url = keyed_console.url
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {SERVER_KEY}"}) as http:
        http.post("/v1/organization/projects", json={"name": "small"}).raise_for_status()
        here = "/v1/organization/projects/small/api_keys"
        body = {"name": "small", "scopes": ["models.use", "files", "jobs"]}
        key = http.post(here, json=body).json()["value"]
    page = open_page("/console/jobs?status=failed", url=url)
    expect(page.get_by_role("heading", name="Sign in to Verandah")).to_be_visible()

    def check() -> None:
        assert page.locator("h1").count() == 1, page.url
        assert grave(page, axe) == [], page.url
        assert widths(page) == {}, page.url

    check()
    page.get_by_label("API key").fill("vk-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    check()
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/jobs?status=failed")
    for path in ("", "/jobs", "/data", "/compare", "/adapters", "/keys", "/admin/owners"):
        page.goto(f"{url}/console{path}")
        settled(page)
        check()
