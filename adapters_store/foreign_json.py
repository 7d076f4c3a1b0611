"""Reads JSON that somebody else wrote, within bounds. Knows no fields."""

import json
from typing import Any, Final

_MAX_DEPTH: Final = 32
_MAX_DIGITS: Final = 20  # Python refuses to read thousands, and takes long for many


def read_object(text: bytes, *, max_parts: int) -> dict[str, Any]:
    """The object that `text` is. The caller bounds its bytes.

    A whole number of over 20 digits is read as a float, and one that is too large is infinite:
    whoever reads the field refuses it by name.

    Args:
        max_parts: how many objects and lists it may hold, itself included.

    Raises:
        ValueError: it is no JSON object, or too large or deep; the message says which.
    """
    # Counted before it is parsed, where each would cost a thousand bytes and time.
    if text.count(b"{") + text.count(b"[") > max_parts:
        raise ValueError(f"it holds more than {max_parts} objects and lists")
    try:
        value = json.loads(text, object_pairs_hook=_without_twins, parse_int=_number)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    _check_depth(value)
    return value


_TOO_DEEP: Final = f"it is not JSON of at most {_MAX_DEPTH} levels"


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{name[:80]!r} stands in it twice")
        fields[name] = value
    return fields


def _number(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        parts = [part for part in level if isinstance(part, dict | list)]
        level = [
            item for part in parts for item in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
