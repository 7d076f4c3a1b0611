"""Read the values of a training line, and say what is wrong with them. Knows no roles."""

import json
from collections.abc import Iterator, Mapping, Sequence

from adapters_store import outside_values

Record = Mapping[str, object]
_SHOWN_KEY = 40


class BadLine(Exception):
    """Why a line cannot be used."""


def empty(value: object) -> bool:
    """Whether a field of this value asks for nothing: SDKs write such fields when they dump."""
    if isinstance(value, dict):
        return all(map(empty, value.values()))
    return value is None or value in ("", [])


def text(value: object, where: str) -> str:
    """A string, or the OpenAI API's list of text parts, joined."""
    if isinstance(value, list):
        value = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(value))
    if not isinstance(value, str):
        raise BadLine(f"{where} has no text: it is {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadLine(f"{where} holds half of a surrogate pair, which is no character") from error
    return value


def encodable(value: object, where: str) -> None:
    """Refuse JSON that holds half of a surrogate pair anywhere."""
    text(json.dumps(value, ensure_ascii=False), where)


def written(value: object, where: str) -> str:
    """A text with more than blanks."""
    string = text(value, where)
    if not string.strip():
        raise BadLine(f"{where} is empty")
    return string


def _part(value: object, where: str) -> str:
    if isinstance(value, dict) and value.get("type") == "text":
        string = value.get("text")
        if isinstance(string, str):
            return string
    raise BadLine(f"{where} is not a text part; only text can be trained on")


def unknown(value: Mapping[str, object], known: Sequence[str], where: str = "") -> Iterator[str]:
    """The other keys of an object, as far as they ask for something, with where they are."""
    for key, inner in value.items():
        if key not in known and not empty(inner):
            yield where + key[:_SHOWN_KEY]


def shown(value: object) -> str:
    return "missing" if value is None else outside_values.shown(value)


def kind_of(value: object) -> str:
    """The JSON type of a value."""
    kinds = {list: "list", str: "string", bool: "boolean", type(None): "null", dict: "object"}
    return kinds.get(type(value), "number")
