"""Home and Usage in a real browser: what refreshes by itself, and what does not."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Request, expect

from tests.services.console.conftest import SERVER_KEY, Console, OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[3] / "examples" / "pirate.jsonl"


def ask(console: Console, times: int = 1) -> None:
    with console.http as http:
        for _ in range(times):
            body = {"model": "base", "prompt": "How do I make soup?", "max_tokens": 3}
            http.post("/v1/completions", json=body).raise_for_status()


def test_figures_move_by_themselves(open_page: OpenPage, console: Console) -> None:
    page = open_page()
    page.evaluate("window.loadedOnce = true")
    ask(console, 3)
    curve = page.locator(".figure svg path.spark").first
    expect(curve).to_be_attached(timeout=15_000)
    before = curve.get_attribute("d")
    expect(curve).not_to_have_attribute("d", before or "", timeout=15_000)
    answered = page.locator(".figure", has_text=re.compile(r"[1-9]\d* were answered"))
    expect(answered).to_be_visible(timeout=15_000)
    assert page.evaluate("window.loadedOnce"), "the page was not loaded again"


def test_a_link_keeps_the_focus_while_figures_move(open_page: OpenPage) -> None:
    page = open_page()
    link = page.get_by_role("link", name="All jobs")
    link.focus()
    for _ in range(2):
        with page.expect_response("**/console/home/live"):
            pass
    expect(link).to_be_focused()


def test_nothing_is_asked_while_nobody_looks(open_page: OpenPage) -> None:
    page = open_page()
    asked: list[str] = []

    def note(request: Request) -> None:
        if request.url.endswith("/live"):
            asked.append(request.url)

    page.on("request", note)
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})"
    )
    page.wait_for_timeout(3_000)
    assert asked == []
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => false})")
    with page.expect_response("**/console/home/live", timeout=10_000):
        pass


def test_a_lost_server_is_told_once_and_forgotten_when_it_is_back(open_page: OpenPage) -> None:
    page = open_page()
    page.route("**/console/home/live", lambda route: route.abort())
    notice = page.get_by_text("The server does not answer")
    expect(notice).to_have_count(1, timeout=10_000)
    page.wait_for_timeout(2_500)
    expect(notice).to_have_count(1)
    page.unroute("**/console/home/live")
    expect(notice).to_have_count(0, timeout=10_000)


def test_a_failure_that_repeats_is_shown_once(open_page: OpenPage) -> None:
    page = open_page()
    failure = '<div class="notice bad" role="alert"><p>the database is locked</p></div>'
    headers = {"hx-retarget": "#notices", "hx-reswap": "beforeend", "content-type": "text/html"}
    page.route(
        "**/console/home/live",
        lambda route: route.fulfill(status=503, headers=headers, body=failure),
    )
    page.wait_for_timeout(5_000)
    expect(page.get_by_text("the database is locked")).to_have_count(1)


def test_the_sample_is_downloaded(open_page: OpenPage, keyed_console: Console) -> None:
    """On a server that has no adapter yet."""
    page = open_page("/console/sign-in", url=keyed_console.url)
    page.get_by_label("API key").fill(SERVER_KEY)
    page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the sample").click()
    assert download.value.suggested_filename == "sample.jsonl"
    assert download.value.path().read_bytes() == EXAMPLE.read_bytes()


def test_usage_by_keyboard_alone(open_page: OpenPage, console: Console) -> None:
    ask(console)
    page = open_page("/console/usage")
    page.get_by_role("link", name="30 days").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**period=30d**")
    expect(page.get_by_role("link", name="30 days")).to_have_attribute("aria-current", "true")
    summary = page.get_by_text("By the day", exact=True)
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="From (UTC)")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").press("Enter")
    assert download.value.path().read_text().startswith("from,owner,model,requests,refused,")
