"""Documents that are changed in hostile ways, each change written down as JSON.

An edit is `{"op": ..., "at": path, "put": value}`. Values that JSON cannot say, or that are too
long to print, are objects with a key that begins with "$": `expanded` lists them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

Path = list[Any]
Edit = dict[str, Any]

MARKER = "\ufdd0"  # stands around raw text until the document is written; no character

_MOST_COPIED = 400_000

_NUMBERS: list[Any] = [
    *(0, -1, 1, 2, 7, 128, 257, 300, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1),
    *(0.5, 1.0, -0.0, 1e-320, 1e-8, 1e38, 1e308, -1e308),
    *({"$raw": text} for text in ("1e309", "-1e309", "1e99999", "NaN", "Infinity", "-Infinity")),
    {"$raw": "9", "$times": 400},
    {"$raw": "9", "$times": 5000},
    {"$raw": "0." + "3" * 40},
]
_TEXTS: list[Any] = [
    *("", " ", "a", "é", "日本", "qz", "</s>", "<|end|>", "<été>", "null", "true", "NaN", "auto"),
    *(
        "\x00",
        "\x1b[31m",
        "\ud800",
        "a\udfffb",
        "\u202e",
        "\u2028",
        "\ufeff",
        "\ufffe",
        "👩\u200d🚀",
    ),
    *(
        "base",
        "pet",
        "pet@1",
        "pet@0",
        "pet@-1",
        "pet@99999999999999999999",
        "pet@1e3",
        "@",
        "none",
    ),
    *("../../etc/passwd", "a/b", "a\\b", "%00", "%2e%2e", "{{7*7}}", "{% for %}", "'; --", "$HOME"),
    *("fine-tune", "base\n", "(a+)+$", ".*", "1", "-1", "1e309", "0x10", "1_000", " 1", "\u0661"),
    {"$text": "1", "$times": 5000},
    {"$text": "a", "$times": 70},
    {"$text": "ab ", "$times": 400},
    {"$text": "é", "$times": 3000},
    {"$text": "\ud800", "$times": 300},
]
_SHAPES: list[Any] = [
    *(None, True, False, [], {}, [None], [[]], {"a": {}}, [{}], [1, "a", None], {"": None}),
    {"$nest": "[", "$times": 60},
    {"$nest": '{"a":', "$times": 60},
    {"$nest": "[", "$times": 5000},
    {"$nest": '{"a":', "$times": 5000},
    {"$list": None, "$times": 200},
    {"$list": {}, "$times": 3000},
    {"$list": "a", "$times": 5000},
    {"$list": 1, "$times": 20000},
    {"$keys": "k", "$times": 200},
    {"$keys": "1", "$times": 3000},
]
_BIG: list[Any] = [
    {"$text": "a", "$times": 2_000_000},
    {"$text": "日", "$times": 600_000},
    {"$text": "\\", "$times": 1_000_000},
    {"$nest": "[", "$times": 500_000},
    {"$nest": '{"a":', "$times": 300_000},
    {"$list": {}, "$times": 1_500_000},
    {"$list": [[]], "$times": 800_000},
    {"$list": 1, "$times": 2_000_000},
    {"$list": {"role": "user", "content": "a"}, "$times": 150_000},
    {"$list": "a", "$times": 1_000_000},
    {"$keys": "k", "$times": 300_000},
    {"$raw": "9", "$times": 4_000_000},
]
_STRANGE_KEYS: list[str] = [
    *("", " ", "\x00", "\ud800", "__class__", "__proto__", "é", "extra", "id", "owner", "tools"),
    *("best_of", "functions", "expires_after", "model", "prompt", "messages", "dry_run", "n"),
    *("k" * 3000, "1" * 5000, "-1", "1e5", "300", "٣", "base", "<|end|>"),
]


def value(chance: Random, *, big: bool = False) -> Any:
    """Something that hardly anybody expects."""
    if big and chance.random() < 0.04:
        return chance.choice(_BIG)
    return chance.choice(chance.choice([_NUMBERS, _TEXTS, _SHAPES]))


def paths(document: Any, top: Path | None = None) -> Iterator[Path]:
    """Where something stands in a document, but for its top."""
    at = top or []
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(document, dict) and not is_tagged(document):
        items = iter(document.items())
    elif isinstance(document, list):
        items = iter(enumerate(document))
    for key, inner in items:
        yield [*at, key]
        yield from paths(inner, [*at, key])


def edit(chance: Random, document: Any, *, big: bool = False) -> Edit:
    """One change of a document."""
    at = chance.choice(list(paths(document)) or [[]])
    op = chance.choice(["put", "put", "put", "put", "drop", "add", "twice", "wrap", "copies"])
    if op == "drop":
        return {"op": op, "at": at}
    if op == "wrap":
        return {"op": op, "at": at, "put": chance.choice(["list", "object", "text"])}
    if op == "copies":
        return {"op": op, "at": at, "put": chance.choice([2, 20, 70, 300, 1100])}
    if op == "add":
        at = [*at[:-1], chance.choice(_STRANGE_KEYS)]
    return {"op": op, "at": at, "put": value(chance, big=big)}


def edited(document: Any, edits: Sequence[Mapping[str, Any]]) -> Any:
    """A copy of a document with the changes; those that fit nowhere any more are left out."""
    document, edits = json.loads(json.dumps([document, edits]))
    for change in edits:
        *way, last = change["at"] or [None]
        place = document
        for key in way:
            place = _child(place, key)
        if isinstance(place, dict) and isinstance(last, str):
            _change_key(place, last, change)
        elif isinstance(place, list) and isinstance(last, int) and last < len(place):
            _change_item(place, last, change)
    return document


def _child(place: Any, key: Any) -> Any:
    if isinstance(place, dict):
        return place.get(key)
    inside = isinstance(place, list) and isinstance(key, int) and key < len(place)
    return place[key] if inside else None


def _change_key(place: dict[str, Any], key: str, change: Mapping[str, Any]) -> None:
    op = change["op"]
    if op == "drop":
        place.pop(key, None)
    elif op == "twice":
        place[f"{MARKER}{key}"] = change["put"]
    elif op == "copies":
        # Of `metadata[KEY]`, the key within is numbered.
        name, end = (key[:-1], "]") if key.endswith("]") else (key, "")
        inner = place.get(key)
        place.update({f"{name}{number}{end}": inner for number in range(_copies(inner, change))})
    else:
        place[key] = _wrapped(place.get(key), change) if op == "wrap" else change["put"]


def _change_item(place: list[Any], index: int, change: Mapping[str, Any]) -> None:
    op = change["op"]
    if op == "drop":
        del place[index]
    elif op in ("twice", "add"):
        place.insert(index, change["put"])
    elif op == "copies":
        place[index:index] = [place[index]] * _copies(place[index], change)
    else:
        place[index] = _wrapped(place[index], change) if op == "wrap" else change["put"]


def _copies(inner: Any, change: Mapping[str, Any]) -> int:
    """How many: fewer of what is long already."""
    count: int = change["put"]
    return min(count, _MOST_COPIED // len(written(inner)))


def _wrapped(inner: Any, change: Mapping[str, Any]) -> Any:
    if change["put"] == "list":
        return [inner]
    return {"value": inner} if change["put"] == "object" else json.dumps(inner)


def is_tagged(item: object) -> bool:
    """Whether an object stands for something else."""
    return isinstance(item, dict) and any(key.startswith("$") for key in item)


def expanded(item: Mapping[str, Any]) -> str:
    """The JSON text that a tagged object stands for."""
    times: int = item.get("$times", 1)
    if "$raw" in item:
        return str(item["$raw"]) * times
    if "$text" in item:
        return json.dumps(item["$text"] * times)
    if "$nest" in item:
        opening = str(item["$nest"])
        closing = "]" if opening == "[" else "}"
        return opening * times + "0" + closing * times
    if "$keys" in item:
        return json.dumps({f"{item['$keys']}{number}": number for number in range(times)})
    return "[" + ", ".join([written(item["$list"])] * times) + "]"


def written(document: Any) -> str:
    """A document as JSON text, with all that edits put into it."""
    if is_tagged(document):
        return expanded(document)
    if isinstance(document, dict):
        pairs = (
            f"{json.dumps(key.removeprefix(MARKER))}: {written(item)}"
            for key, item in document.items()
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(document, list):
        return "[" + ", ".join(map(written, document)) + "]"
    return json.dumps(document)


def plain(item: Any) -> str:
    """A value as a form, a query or a path shows it: text as it is."""
    text = written(item)
    if isinstance(item, str) or (is_tagged(item) and "$text" in item):
        return str(json.loads(text))
    return text
