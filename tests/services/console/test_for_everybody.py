"""Few colours, no motion, no mouse: what pages show and do then."""

import re

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.services.console.conftest import Console, OpenPage
from tests.services.console.full_house import Things

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

SHOWN = """it => { const look = getComputedStyle(it);
    return [look.color, look.backgroundColor, look.textDecorationLine, look.opacity].join(); }"""
COLOURS_OF_CANVAS = """it => {
    const {data} = it.getContext("2d").getImageData(0, 0, it.width, it.height);
    const seen = new Map();
    for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] > 200) {
            const name = data.slice(at, at + 3).join();
            seen.set(name, (seen.get(name) ?? 0) + 1);
        }
    }
    return [...seen].filter(([, times]) => times > 30).map(([name]) => name);
}"""
CONTRAST = """cell => {
    const light = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((it) => it / 255)
            .map((it) => (it <= 0.04 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4));
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05;
    };
    const fill = (part) => light(getComputedStyle(cell.querySelector(part)).fill);
    const [a, b] = [fill("rect"), fill("text")];
    return Math.max(a, b) / Math.min(a, b);
}"""


def colours(found: Locator) -> set[str]:
    shown: list[str] = found.evaluate_all(
        "all => all.map((it) => getComputedStyle(it).backgroundColor)"
    )
    return set(shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_states_and_curves_show_in_few_colours(
    open_page: OpenPage, console: Console, things: Things, scheme: str
) -> None:
    page = open_page(f"/console/jobs/{things.job}")
    page.emulate_media(forced_colors="active", color_scheme=scheme)  # type: ignore[arg-type]
    page.reload()
    here = page.locator(".side nav a[aria-current]")
    others = page.locator(".side nav a:not([aria-current])")
    assert here.evaluate(SHOWN) != others.first.evaluate(SHOWN)
    expect(page.locator("#curves")).to_have_attribute("data-steps", re.compile(r"[1-9]"))
    page.wait_for_timeout(200)
    plots = page.locator("#curves canvas")
    assert len(plots.first.evaluate(COLOURS_OF_CANVAS)) >= 3, "two curves, and the words"
    switch = page.get_by_role("button", name=re.compile("^Held out"))
    before = switch.evaluate(SHOWN)
    switch.click()
    assert switch.evaluate(SHOWN) != before

    page.goto(f"{console.url}/console/usage?by=model")
    swatches = page.locator(".swatch")
    expect(swatches.first).to_be_visible()
    kinds: list[str] = swatches.evaluate_all("all => all.map((it) => it.className)")
    assert len(colours(swatches)) == len(set(kinds)) > 1
    one, other = (page.locator(f".segments a{it}").first for it in ("[aria-current]", ""))
    assert one.evaluate(SHOWN) != other.evaluate(SHOWN)

    page.goto(f"{console.url}/console/admin/owners")
    one, other = (page.locator(f".tabs a{it}").first for it in ("[aria-current]", ""))
    assert one.evaluate(SHOWN) != other.evaluate(SHOWN)

    page.goto(f"{console.url}/console/adapters/every-page")
    expect(page.locator("[data-spectrum] h3")).to_be_visible(timeout=30_000)
    cells = page.locator("#changed [data-map] .cell[role=button]:has(text)")
    assert min(cells.nth(at).evaluate(CONTRAST) for at in range(cells.count())) >= 4.5

    page.goto(f"{console.url}/console/compare?model=every-page&prompt=Hi&max_tokens=3")
    assert len(colours(page.locator("#chips .dot"))) == 2
    page.click("#send")
    good, bad = (page.get_by_role("button", name=it).first for it in ("Good", "Bad"))
    expect(page.locator("#status")).to_have_text("All answers are there.", timeout=60_000)
    good.click()
    assert good.evaluate(SHOWN) != bad.evaluate(SHOWN)

    page.goto(f"{console.url}/console/data/{things.file}")
    learnt = page.locator("#lines mark .t").first
    line = learnt.evaluate("it => getComputedStyle(it).textDecorationLine")
    assert line == "underline"


def test_nothing_moves_for_whoever_wants_it_so(chromium: Browser, console: Console) -> None:
    """The dot of what is live pulses, for others."""
    moving = {}
    for wish in ("no-preference", "reduce"):
        page = chromium.new_page(reduced_motion=wish)
        page.goto(f"{console.url}/console/compare?prompt=Tell+me+a+story.&max_tokens=400")
        page.click("#send")
        expect(page.locator(".state.live")).to_be_visible()
        moving[wish] = page.evaluate("document.getAnimations().length")
        page.close()
    assert moving == {"no-preference": 1, "reduce": 0}


def press(target: Locator, key: str = "Enter") -> None:
    """Come to it by keyboard alone, and press the key."""
    target.focus()
    target.page.keyboard.press(key)


def check_dialog(page: Page, opener: Locator) -> None:
    """It keeps the focus, Escape closes it, and whoever opened it has the focus again."""
    press(opener)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for key in ["Tab"] * 6 + ["Shift+Tab"] * 6:
        page.keyboard.press(key)
        assert page.evaluate(
            "it => it === document.body || it.closest('dialog') !== null",
            page.evaluate_handle("document.activeElement"),
        )
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()


def test_dialogs_keep_the_focus_and_give_it_back(
    open_page: OpenPage, console: Console, things: Things
) -> None:
    page = open_page(f"/console/jobs/{things.paused_job}")
    check_dialog(page, page.get_by_role("button", name="Cancel…"))
    page.goto(f"{console.url}/console/adapters/every-page")
    check_dialog(page, page.get_by_role("link", name="Delete", exact=True))
    check_dialog(page, page.get_by_role("link", name="Delete version 1").first)
    page.goto(f"{console.url}/console/compare?prompt=Hi&max_tokens=3")
    press(page.locator("#send"))
    press(page.get_by_role("button", name="Good"))
    press(page.get_by_role("button", name="Add to training lines"))
    edit = page.get_by_role("button", name="Edit line 1")
    check_dialog(page, edit)
    press(edit)
    page.get_by_label("The answer as it should be").fill("Better.")
    press(page.get_by_role("button", name="Save"))
    expect(page.locator("#line-list")).to_contain_text("Better.")
    expect(edit).to_be_focused()
    press(page.get_by_role("button", name="Remove line 1"))
    press(page.get_by_role("button", name="Put it back"))
    expect(edit).to_be_focused()


def test_the_focus_stays_near_what_was_pressed(
    open_page: OpenPage, console: Console, things: Things
) -> None:
    """Where a part of a page is exchanged under it."""
    page = open_page(f"/console/data/{things.bad_file}")
    check = page.locator("#check")
    press(check.get_by_role("link", name="Next"))
    expect(check).to_contain_text("Page 2 of")
    assert focused_within(page, "#check")
    page.goto(f"{console.url}/console/jobs/{things.paused_job}")
    press(page.get_by_role("button", name="Resume"))
    expect(page.get_by_role("button", name="Pause")).to_be_visible(timeout=30_000)
    assert focused_within(page, "#job-state")
    press(page.get_by_role("button", name="Pause"))
    expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=30_000)
    assert focused_within(page, "#job-state")
    page.goto(f"{console.url}/console/adapters/every-page")
    press(page.get_by_role("button", name="Pin @1"))
    expect(page.get_by_role("button", name="Unpin @1")).to_be_visible()
    assert focused_within(page, "#place")
    press(page.get_by_role("button", name="Unpin @1"))
    expect(page.get_by_role("button", name="Pin @1", exact=True)).to_be_visible()
    assert focused_within(page, "#place")


@pytest.mark.parametrize("path", ["/admin", "/jobs/{paused_job}", "/adapters/every-page"])
def test_the_focus_stays_where_a_page_renews_itself(
    open_page: OpenPage, things: Things, path: str
) -> None:
    page = open_page("/console" + things.path(path))
    part = page.locator("#state, #job-state, #place").first
    stop = part.locator("[tabindex='0'], button").first
    stop.focus()
    again = re.compile("/admin/state$|/jobs/ftjob-[^/]+$|/-/place/")
    with page.expect_response(again):
        pass
    page.wait_for_timeout(200)
    expect(stop).to_be_focused()


def focused_within(page: Page, selector: str) -> bool:
    within: bool = page.evaluate("it => document.activeElement.closest(it) !== null", selector)
    return within
