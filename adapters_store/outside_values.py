"""Reads JSON and numbers that come from outside, and quotes them, with bounds. Knows no fields.

`json.loads` holds the interpreter's lock from beginning to end, and what it takes is set by the
number of values and not by the bytes: 8 MiB of text take 6 ms, 8 MiB of nested lists over a second.
So the values are counted first, which takes about a nanosecond for each byte.
"""

import json
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

MOST_DIGITS: Final = 308  # as many as the largest float has

_ROUND: Final = bytes.maketrans(b"[]{}", b"()()")
_NOT_ROUND: Final = bytes(set(range(256)) - set(b"[]{}"))
_ONE_DIGIT: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG: Final = b"0" * (MOST_DIGITS + 1)


@dataclass(frozen=True)
class JsonBounds:
    """How much a JSON text may hold. What the defaults allow takes 50 ms of one slow core.

    `objects` counts lists, objects and their keys: each takes as long as five numbers.
    """

    values: int = 160_000
    objects: int = 32_000
    depth: int = 64


_OF_BODY: Final = JsonBounds()


class BadJson(ValueError):
    """A text is not JSON, or more than is read. The message is a predicate: "is not JSON: ..."."""


def read_json(
    content: bytes,
    *,
    unique_keys: bool = False,
    finite: bool = True,
    bounds: JsonBounds = _OF_BODY,
) -> Any:
    """The value that a JSON text in UTF-8 writes.

    Args:
        unique_keys: refuse an object that has a key twice. Else the last of them counts.
        finite: refuse numbers that are not finite, or beyond what a float holds. Else they are read
            as floats, and whoever knows the field refuses them by its name.

    Raises:
        BadJson: it is none; it is over a bound; or it has such a number.
    """
    bare = _without_texts(content, bounds)
    _check_size(bare, bounds)
    # None: C's own reading, which is four times as fast. It may be infinite, or over all bounds.
    long = _LONG in bare.translate(_ONE_DIGIT)
    whole: Callable[[str], float] | None = (_whole if finite else float) if long else None
    fraction = _finite if finite and (long or b"e" in bare or b"E" in bare) else None
    try:
        return json.loads(
            content.decode(),
            parse_int=whole,
            parse_float=fraction,
            parse_constant=_refuse_constant if finite else None,
            object_pairs_hook=_unique if unique_keys else None,
        )
    except BadJson:
        raise
    except UnicodeDecodeError as error:
        raise BadJson(f"is not UTF-8 at byte {error.start + 1}: send UTF-8") from error
    except RecursionError as error:
        raise BadJson(_too_deep(bounds)) from error
    except json.JSONDecodeError as error:
        raise BadJson(f"is not JSON: {error.msg} at character {error.pos + 1}") from error


def whole_number(text: str) -> int | None:
    """The number that decimal digits write; None if `text` is anything else, or over 18 digits."""
    return int(text) if len(text) <= 18 and text.isascii() and text.isdecimal() else None


def shown(value: object) -> str:
    """A value as a message quotes it: short, however large the value is."""
    quote = reprlib.Repr()
    quote.maxstring, quote.maxother, quote.maxlevel = 80, 80, 2
    return quote.repr(value)[:120]


def _without_texts(content: bytes, bounds: JsonBounds) -> bytes:
    """The JSON without what stands between its quotes, so that its marks can be counted."""
    # Two steps, so that a backslash that is itself escaped escapes no quote.
    plain = content.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 2 * bounds.values:
        raise BadJson(_too_many(bounds))
    return b"".join(plain.split(b'"')[::2])


def _check_size(bare: bytes, bounds: JsonBounds) -> None:
    opened = bare.count(b"[") + bare.count(b"{")
    objects = opened + bare.count(b":")
    if objects > bounds.objects or opened + bare.count(b",") > bounds.values:
        raise BadJson(_too_many(bounds))
    if opened <= bounds.depth:
        return
    brackets = bare.translate(_ROUND, _NOT_ROUND)
    for _ in range(bounds.depth):  # each round takes away the innermost pairs
        brackets = brackets.replace(b"()", b"")
    if b"()" in brackets:
        raise BadJson(_too_deep(bounds))


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise BadJson(_too_large(digits))
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadJson(_too_large(text))
    return number


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key in counts if counts[key] > 1)
        raise BadJson(f"has the key {shown(twice)} twice in one object: keep one of them")
    return value


def _refuse_constant(name: str) -> object:
    raise BadJson(f"holds {name}, which is no JSON: write a finite number, or leave it out")


def _too_large(text: str) -> str:
    cut = text if len(text) <= 24 else f"{text[:20]}... ({len(text)} characters)"
    return f"holds the number {cut}, which is beyond 1e308 in size: write a smaller one"


def _too_many(bounds: JsonBounds) -> str:
    return (
        f"has more than {bounds.values} values, or {bounds.objects} lists, objects and keys: send "
        "fewer at once"
    )


def _too_deep(bounds: JsonBounds) -> str:
    return f"is nested more than {bounds.depth} deep: send flatter JSON"
