"""Characters that command a terminal, or that reorder what it shows. All others are text.

Joiners, spaces of every width, direction marks, variation selectors, tags, private and unassigned
characters belong to somebody's writing. `str.isprintable` knows none of them.
"""

import re
from collections.abc import Mapping
from typing import Final

_REPLACEMENT: Final = "\ufffd"
_PICTURES: Final = 0x2400  # Unicode's own pictures of the first 32 characters
_DELETE: Final = 0x7F
# The second control block; embeddings, overrides and isolates of direction; halves of pairs, which
# no encoding can write.
_OTHERS: Final = (
    range(0x80, 0xA0),
    range(0x202A, 0x202F),
    range(0x2066, 0x206A),
    range(0xD800, 0xE000),
)
_VISIBLE: Final[Mapping[int, str]] = {
    **{code: chr(_PICTURES + code) for code in range(32)},
    _DELETE: "\u2421",
    **{code: _REPLACEMENT for codes in _OTHERS for code in codes},
}
_LINES: Final[Mapping[int, str]] = {
    code: shown for code, shown in _VISIBLE.items() if chr(code) not in "\n\t"
}
_ANY: Final = re.compile(f"[{re.escape(''.join(map(chr, _VISIBLE)))}]")


def has_control(text: str) -> bool:
    """Whether the text holds a control character; line breaks and tabs are such."""
    return _ANY.search(text) is not None


def visible(text: str) -> str:
    """The text with a picture of each control character, or U+FFFD, in its place."""
    return text.translate(_VISIBLE)


def visible_lines(text: str) -> str:
    """As `visible`, but line breaks and tabs stay."""
    return text.replace("\r\n", "\n").translate(_LINES)
