"""The frame of all pages, in a real browser."""

import pytest
from playwright.sync_api import expect

from tests.services.console.conftest import PHONE, WIDE, OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_no_page_is_wider_than_the_window(open_page: OpenPage, size: tuple[int, int]) -> None:
    page = open_page("/console", size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_the_navigation_works_by_keyboard_alone(open_page: OpenPage) -> None:
    page = open_page("/console")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
