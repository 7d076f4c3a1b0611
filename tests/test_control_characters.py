"""What commands a terminal becomes visible; what is text stays."""

import sys
import unicodedata

import pytest

from server.control_characters import has_control, visible, visible_lines
from tests.writing import WRITING


@pytest.mark.parametrize("text", WRITING)
def test_a_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == visible_lines(text) == text
    assert not has_control(text)


def test_each_control_character_becomes_one_visible_character() -> None:
    """Of all that Unicode has: what it calls a control, and what turns the direction."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        control = unicodedata.category(char) in ("Cc", "Cs")
        if control or unicodedata.bidirectional(char) in turning:
            assert has_control(char)
            shown = visible(char)
            assert len(shown) == 1 and (shown == "\ufffd" or 0x2400 <= ord(shown) <= 0x2421)
            assert visible_lines(char) == (char if char in "\n\t" else shown)
        else:
            assert not has_control(char)
            assert visible(char) == visible_lines(char) == char


def test_only_a_lone_carriage_return_is_a_command() -> None:
    assert visible_lines("a\r\nb\rc") == "a\nb\u240dc"
