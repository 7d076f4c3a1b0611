"""The pages of jobs in a real browser, beside a real worker."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.services.console.conftest import PHONE, Console, OpenPage
from tests.services.console.full_house import EXAMPLE, LONG, Things

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

SLOW = 60_000  # ms: a worker loads its base first


def train(console: Console, suffix: str, **options: Any) -> str:
    """Start a job; its id."""
    with console.http as http:
        lines = EXAMPLE.read_bytes()
        upload = {"file": ("pirate.jsonl", lines)}
        file = http.post("/v1/files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
        body = {"model": "base", "training_file": file, "suffix": suffix, "verandah": options}
        job = http.post("/v1/fine_tuning/jobs", json=body).json()
        assert "id" in job, job
        return str(job["id"])


def end(console: Console, job: str) -> None:
    with console.http as http:
        http.post(f"/v1/fine_tuning/jobs/{job}/cancel")


@pytest.fixture
def long_job(console: Console) -> Iterator[str]:
    job = train(console, "long", **LONG)
    yield job
    end(console, job)


@pytest.fixture
def own_console(tmp_path: Path) -> Iterator[Console]:
    """A server that a test may kill."""
    running = Console(tmp_path / "home", "--lease-s", "6")
    yield running
    running.stop()


def drawn(page: Page) -> int:
    return int(page.locator("#curves").get_attribute("data-steps") or 0)


def steps_in_table(page: Page) -> list[int]:
    """The steps that are drawn, as the table has them."""
    page.locator("#numbers").evaluate("it => { it.open = true; }")
    rows = page.locator("#numbers tbody tr td:first-child")
    expect(rows).not_to_have_count(0)
    return [int(it) for it in rows.all_text_contents()]


def wait_for_step(page: Page, step: int) -> None:
    until(page, lambda: drawn(page) >= step)


def until(page: Page, condition: Callable[[], bool], most_s: float = SLOW / 1000) -> None:
    """Playwright's own waits for a function need `eval`, which the policy stops."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < most_s
        page.wait_for_timeout(100)


def reported(console: Console, job: str) -> list[int]:
    with console.http as http:
        found = http.get(f"/v1/fine_tuning/jobs/{job}/metrics").json()["data"]
    return [point["step"] for point in found]


def check_each_step_once(page: Page, console: Console, job: str) -> None:
    known = reported(console, job)
    wait_for_step(page, len(known))
    steps = steps_in_table(page)
    assert len(steps) == len(set(steps))
    assert set(known) <= set(steps) <= set(reported(console, job))
    notes = page.locator("#log li[data-event]").evaluate_all(
        "all => all.map(it => it.dataset.event)"
    )
    assert len(notes) == len(set(notes))


def test_a_curve_grows_and_survives_a_reload(
    open_page: OpenPage, console: Console, long_job: str
) -> None:
    page = open_page(f"/console/jobs/{long_job}")
    wait_for_step(page, 6)
    expect(page.locator("#stream")).to_have_text("Live")
    before = drawn(page)
    page.reload()
    wait_for_step(page, before + 4)
    check_each_step_once(page, console, long_job)
    expect(page.locator("#job-state")).to_contain_text("It learns.")
    expect(page.get_by_role("progressbar")).to_be_visible()


def test_a_job_is_paused_resumed_and_cancelled(
    open_page: OpenPage, console: Console, long_job: str
) -> None:
    page = open_page(f"/console/jobs/{long_job}")
    wait_for_step(page, 2)
    state, log = page.locator("#job-state"), page.locator("#log")
    page.get_by_role("button", name="Pause").click()
    expect(state.locator(".badge").first).to_have_text("paused", timeout=SLOW)
    page.get_by_role("button", name="Resume").click()
    expect(log).to_contain_text("The job was resumed", timeout=SLOW)
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(state.locator(".badge").first).to_have_text("cancelled", timeout=SLOW)
    expect(page.get_by_role("button", name="Cancel…")).to_have_count(0)
    check_each_step_once(page, console, long_job)


def test_a_server_that_dies_and_comes_back(open_page: OpenPage, own_console: Console) -> None:
    job = train(own_console, "tough", **LONG)
    page = open_page(f"/console/jobs/{job}", url=own_console.url)
    wait_for_step(page, 5)
    port = int(own_console.url.rpartition(":")[2])
    own_console.process.kill()
    own_console.process.communicate()
    expect(page.locator("#stream")).to_contain_text("Connection lost", timeout=SLOW)
    before = drawn(page)
    own_console.start(port)
    expect(page.locator("#stream")).to_have_text("Live", timeout=SLOW)
    until(page, lambda: drawn(page) >= before + 5, 120)  # the dead worker's lease ends first
    expect(page.locator("#log")).to_contain_text("attempt 2")
    check_each_step_once(page, own_console, job)
    page.reload()
    check_each_step_once(page, own_console, job)


def test_a_stream_that_is_refused_is_opened_again_after_what_was_seen(
    open_page: OpenPage, console: Console, long_job: str
) -> None:
    page = open_page(f"/console/jobs/{long_job}")
    wait_for_step(page, 3)
    asked: list[str] = []

    def refuse(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) < 3:
            route.fulfill(status=503, json={"error": {"message": "not now"}})
        else:
            route.continue_()

    page.route("**/events?stream=true*", refuse)
    hide(page, hidden=True)
    hide(page, hidden=False)
    expect(page.locator("#stream")).to_contain_text("Connection lost")
    expect(page.locator("#stream")).to_have_text("Live", timeout=20_000)
    assert len(asked) == 3
    assert all(re.search(r"&after=ftevent-\w+$", url) for url in asked)
    check_each_step_once(page, console, long_job)


def test_a_hidden_tab_holds_no_stream_and_asks_for_nothing(
    open_page: OpenPage, console: Console, long_job: str
) -> None:
    page = open_page(f"/console/jobs/{long_job}")
    wait_for_step(page, 2)
    hide(page, hidden=True)
    page.wait_for_timeout(300)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    before = drawn(page)
    page.wait_for_timeout(2500)
    assert asked == []
    assert drawn(page) == before
    hide(page, hidden=False)
    wait_for_step(page, before + 2)
    check_each_step_once(page, console, long_job)


def hide(page: Page, *, hidden: bool) -> None:
    page.evaluate(
        "value => { Object.defineProperty(document, 'hidden', {value, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def test_the_result_a_checkpoint_is_asked_and_jobs_are_compared(
    open_page: OpenPage, console: Console, things: Things
) -> None:
    jobs = [things.job, things.other_job]
    page = open_page(f"/console/jobs/{jobs[0]}")
    state = page.locator("#job-state")
    expect(state.get_by_role("heading", name="Better than the base")).to_be_visible(timeout=SLOW)
    expect(state.locator(".sample")).to_have_count(3, timeout=SLOW)
    expect(state.get_by_role("link", name="Compare with the base")).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Ask every-page@1").click()
    page.get_by_label("One question to every-page@1").fill("How do I make tea?")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_have_text(re.compile(r"\w{2,}"))
    switch = page.get_by_role("button", name=re.compile("^Held out"))
    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "false")

    page.goto(f"{console.url}/console/jobs")
    for job in jobs:
        page.locator(f"#pick-{job}").check()
    page.get_by_role("button", name="Compare the chosen ones").click()
    expect(page.get_by_role("heading", name="Compare 2 jobs")).to_be_visible()
    compared = page.locator("#compared")
    until(page, lambda: int(compared.get_attribute("data-points") or 0) > 6)
    expect(page.get_by_role("region", name="What differs")).to_contain_text("learning_rate")
    told = json.loads(compared.get_attribute("data-jobs") or "[]")
    assert {it["id"] for it in told} == set(jobs)


def test_ticks_stay_while_the_list_lives(
    open_page: OpenPage, console: Console, long_job: str
) -> None:
    page = open_page("/console/jobs", PHONE)
    page.locator(f"#pick-{long_job}").check()
    with page.expect_response("**/console/jobs"):
        pass
    page.wait_for_timeout(300)
    expect(page.locator(f"#pick-{long_job}")).to_be_checked()
