"""Debian's Chromium, and a real server with the toy base and a training worker."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.services.console.full_house import Things, filled

HERE = Path(__file__).parent
SERVER_KEY = "the key of the server's admin"
CHROMIUM = shutil.which("chromium")
WIDE, PHONE = (1440, 900), (390, 844)

OpenPage = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in a browser last: while it runs, Playwright keeps an event loop running in the
    main thread, and the tests with a loop of their own need that thread without one."""
    items.sort(
        key=lambda item: (
            HERE in item.path.parents or "chromium" in getattr(item, "fixturenames", ())
        )
    )


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium cannot be had: `apt-get install chromium` brings it")
    expect.set_options(timeout=20_000)  # a server that trains on two busy cores answers late
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Console:
    """A server in a process of its own, whose home outlives it."""

    def __init__(self, home: Path, *options: str, key: str = "") -> None:
        self.home, self.options, self.key = home, options, key
        self.log = home.parent / f"{home.name}.log"
        self.start()

    def start(self, port: int = 0) -> None:
        command = [sys.executable, "-m", "server", "serve", "--model", "porch", *self.options]
        command += ["--port", str(port), "--home", str(self.home)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
        if self.key:
            environment["VERANDAH_API_KEY"] = self.key
        with self.log.open("a") as errors:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving at "), self.log.read_text()
        self.url = line.removeprefix("serving at ").strip()

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A server that asks for no key, which all tests share."""
    running = Console(tmp_path_factory.mktemp("console") / "home")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def things(console: Console) -> Things:
    return filled(console.url)


@pytest.fixture(scope="session")
def keyed_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A server that asks for a key, without a training worker."""
    running = Console(tmp_path_factory.mktemp("keyed") / "home", "--no-worker", key=SERVER_KEY)
    yield running
    running.stop()


@pytest.fixture
def open_page(chromium: Browser, console: Console) -> Iterator[OpenPage]:
    """Opens a page of the console. Whatever the content policy stopped, and every error of a
    script, fails the test."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def opened(path: str = "/console", size: tuple[int, int] = WIDE, url: str = "") -> Page:
        width, height = size
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda said: (
                wrong.append(said.text) if "Content Security Policy" in said.text else None
            ),
        )
        page.goto((url or console.url) + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
