"""The frame of all pages, in a real browser."""

import pytest
from playwright.sync_api import expect

from tests.services.console.conftest import OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]


def test_the_navigation_works_by_keyboard_alone(open_page: OpenPage) -> None:
    page = open_page("/console")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
