"""What holds for every page, with a file, a job and adapters to show: it fits, it is readable by
everybody, and the content policy stops nothing of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from clients.python import Client
from tests.services.console.axe import axe_script, grave_violations
from tests.services.console.conftest import PHONE, WIDE, Console, OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[3] / "examples" / "pirate.jsonl"
METHODS: tuple[Literal["vera"], Literal["lora"]] = ("vera", "lora")
PAGES = (
    "/console",
    "/console/data",
    "/console/data/{file}",
    "/console/jobs",
    "/console/jobs/{job}",
    "/console/jobs/compare?job={job}&job={other_job}",
    "/console/compare?model={base}&model=pirate&prompt=Who are you%3F",
    "/console/adapters",
    "/console/adapters/pirate",
    "/console/adapters/pirate@1",
    "/console/usage",
    "/console/keys",
    "/console/admin",
    "/console/nothing",
)


@dataclass(frozen=True)
class Things:
    """Ids of what the server has."""

    file: str
    job: str
    other_job: str
    base: str

    def path(self, page: str) -> str:
        return page.format(**vars(self))


@pytest.fixture(scope="module")
def things(console: Console) -> Things:
    with Client(console.url) as client:
        file = client.upload(EXAMPLE).id
        first, second = (
            client.train(
                file, suffix="pirate", hyperparameters={"n_epochs": 1, "method": method}
            ).id
            for method in METHODS
        )
        for job in (first, second):
            assert client.wait(job).status == "succeeded"
        return Things(file, first, second, client.models()[0])


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_script(tmp_path_factory.mktemp("axe"))


@pytest.fixture(params=["light", "dark"])
def schemed(request: pytest.FixtureRequest, chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(
        viewport={"width": WIDE[0], "height": WIDE[1]}, color_scheme=request.param
    )
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_no_page_is_wider_than_the_window(
    open_page: OpenPage, things: Things, size: tuple[int, int]
) -> None:
    page = open_page("/console", size)
    too_wide = {}
    for path in PAGES:
        page.goto(page.url.split("/console")[0] + things.path(path))
        page.wait_for_load_state("load")
        page.wait_for_timeout(300)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > size[0]:
            too_wide[path] = width
    assert too_wide == {}


def test_axe_finds_nothing_grave(schemed: Page, console: Console, things: Things, axe: str) -> None:
    found = {}
    for path in PAGES:
        schemed.goto(console.url + things.path(path))
        schemed.wait_for_timeout(500)
        if wrong := grave_violations(schemed, axe):
            found[path] = wrong
    assert found == {}


def test_each_page_says_where_one_is(console: Console, things: Things, chromium: Browser) -> None:
    page = chromium.new_page()
    titles = {}
    for path in PAGES:
        page.goto(console.url + things.path(path))
        assert page.locator("h1").count() == 1, path
        titles[path] = page.title()
    page.close()
    assert all(title.endswith("Verandah") for title in titles.values())
    assert len(set(titles.values())) == len(PAGES)
