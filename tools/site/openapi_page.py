"""The OpenAPI document of the server as one Markdown page. Knows no site and runs no server."""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_INTRO = """# HTTP reference

Made from the server's own OpenAPI document, which is also here as [openapi.json](openapi.json).
A running server shows the same under `/docs`. [The API](api.md) explains the endpoints.
"""


def openapi_page(document: Json) -> str:
    """Every route with its parameters and fields."""
    pages = [_INTRO]
    for path, routes in document["paths"].items():
        for verb, route in routes.items():
            pages.append("\n".join(_route(document, f"{verb.upper()} {path}", route)))
    return "\n".join(pages)


def _route(document: Json, title: str, route: Json) -> Iterator[str]:
    yield f"## {title}\n"
    yield route.get("description", "") + "\n"
    rows = [_row(one["name"], one, one["in"], one["schema"]) for one in route.get("parameters", ())]
    for kind, content in route.get("requestBody", {}).get("content", {}).items():
        rows += _fields(document, content["schema"], "form" if "form" in kind else "body")
    if rows:
        yield "| name | in | type | |\n|---|---|---|---|"
        yield from rows
        yield ""


def _fields(document: Json, schema: Json, place: str) -> list[str]:
    """A row for each field of the body, and below it for each field of an object within."""
    schema = _resolved(document, schema)
    rows: list[str] = []
    for name, field in schema.get("properties", {}).items():
        shown = {"required": name in schema.get("required", ())} | field
        rows.append(_row(name, shown, place, field))
        for inner in (field, field.get("items", {}), *field.get("anyOf", ())):
            if "properties" in _resolved(document, inner):
                rows += _fields(document, inner, f"`{name}`")
    return rows


def _row(name: str, shown: Json, place: str, schema: Json) -> str:
    notes = ["required"] if shown.get("required") is True else []
    if schema.get("default") is not None:
        notes.append(f"default {schema['default']!r}")
    if text := shown.get("description") or schema.get("description"):
        notes.append(text)
    cells = (f"`{name}`", place, _kind(schema), "; ".join(notes))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _kind(schema: Json) -> str:
    """What a value may be, in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        kinds = dict.fromkeys(_kind(one) for one in schema["anyOf"])
        return " or ".join(kind for kind in kinds if kind != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(repr(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _resolved(document: Json, schema: Json) -> Json:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema
