"""Kinds of values that options and variables write as text. Knows no options."""

import re
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

_HOST: Final = re.compile(r"[a-z0-9._:-]+")


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(filter(None, (item.strip() for item in value.split(","))))


WITH_COMMAS: Final = (NoDecode, BeforeValidator(_split))
"""Marks a tuple that an option or variable writes with commas between its items."""

Whole = Annotated[int, Field(le=2**31 - 1)]
Amount = Annotated[float, Field(le=1e9)]  # as seconds 30 years; clocks and locks take no infinity


def _pairs(value: object) -> object:
    """A mapping, of one text with commas or of several; each item is KEY=VALUE."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        return value
    pairs: dict[str, str] = {}
    for item in items:
        key, equals, text = str(item).partition("=")
        if not key or not equals:
            raise ValueError(f"write KEY=VALUE, not {item!r}")
        if key in pairs:
            raise ValueError(f"{key!r} is given twice")
        pairs[key] = text
    return pairs


PAIRS: Final = (NoDecode, BeforeValidator(_pairs))
"""Marks a mapping that an option repeated, or a variable with commas, writes as KEY=VALUE."""


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in values and len(values) > 1:
        raise ValueError("* allows every origin: give it alone, or leave it out")
    for value in values:
        right = value if value in ("*", "null") else _origin(value)
        if value != right:
            raise ValueError(f"{value!r} is not an origin as browsers send it: write {right}")
    return values


def _origin(text: str) -> str:
    """The origin that a text means: SCHEME://HOST, and :PORT unless it is the scheme's own."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:
        host, port = "", None
    if not host or not _HOST.fullmatch(host):
        raise ValueError(f"{text!r} is not an origin: write SCHEME://HOST or SCHEME://HOST:PORT")
    own = {"http": 80, "https": 443}.get(parts.scheme)
    shown_host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown_host}" + ("" if port in (None, own) else f":{port}")


Origins = Annotated[tuple[str, ...], *WITH_COMMAS, AfterValidator(_origins)]
"""Origins as browsers send them, with commas between, or `*`."""
