"""Says in plain words which fields pydantic refuses, with their values and the remedy.

For bodies, queries, forms and the options of commands alike. What it says is bounded.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from adapters_store.outside_values import shown
from server.errors import InvalidJson, InvalidRequest, MissingParameter, UnknownParameter

_MOST_NAMED = 16
_LONGEST_NAME = 200
_NO_OBJECT = ("missing", "model_type", "model_attributes_type")

_NO_WHOLE_NUMBER = "is not a whole number: give one"
_NO_NUMBER = "is not a number: give one"
_NO_BOOL = "is not true or false: give one of them"
_NO_OBJECT_WORDS = "is not an object: give one"
_ONE_OF = "is not one of {expected}: give one of them"
_WORDS: Mapping[str, str] = {
    "missing": "is missing: give it",
    "extra_forbidden": "is unknown: leave it out",
    "string_type": "is not text: give a string",
    "string_unicode": "holds half of a surrogate pair, which is no character: leave it out",
    "int_type": _NO_WHOLE_NUMBER,
    "int_from_float": _NO_WHOLE_NUMBER,
    "int_parsing": _NO_WHOLE_NUMBER,
    "int_parsing_size": "has too many digits: give a smaller number",
    "float_type": _NO_NUMBER,
    "float_parsing": _NO_NUMBER,
    "finite_number": "is not finite: give a finite number",
    "bool_type": _NO_BOOL,
    "bool_parsing": _NO_BOOL,
    "list_type": "is not a list: give one",
    "tuple_type": "is not a list: give one",
    "dict_type": _NO_OBJECT_WORDS,
    "model_type": _NO_OBJECT_WORDS,
    "model_attributes_type": _NO_OBJECT_WORDS,
    "none_required": "is not null: leave it out",
    "literal_error": _ONE_OF,
    "enum": _ONE_OF,
    "greater_than": "is not above {gt}: give more",
    "greater_than_equal": "is below {ge}: give at least {ge}",
    "less_than": "is not below {lt}: give less",
    "less_than_equal": "is above {le}: give at most {le}",
    "string_too_short": "has fewer than {min_length} characters: give more",
    "string_too_long": "has more than {max_length} characters: give fewer",
    "too_short": "has fewer than {min_length} items: give more",
    "too_long": "has more than {max_length} items: give fewer",
}


def predicate(problem: ErrorDetails) -> str:
    """What is wrong with a value, and the remedy: "is above 2: give at most 2"."""
    kind = problem["type"]
    if kind in ("too_short", "too_long") and isinstance(problem["input"], str):
        kind = f"string_{kind}"  # behind a check of its own, pydantic counts a text's "items"
    own = _WORDS.get(kind)
    context = problem.get("ctx", {})
    try:
        return problem["msg"] if own is None else own.format_map(context)
    except KeyError:  # an error of our own that shares pydantic's name for it
        return problem["msg"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A question whether the nearest known name was meant; empty if none is near."""
    found = difflib.get_close_matches(name[:64], [*known], n=1, cutoff=0.7)
    return f" (did you mean {found[0]}?)" if found else ""


def refusal(
    problems: Sequence[ErrorDetails], body: type[BaseModel] | None = None
) -> InvalidRequest:
    """The error that names every wrong field; `param` is the first.

    Args:
        problems: at least one. Their locations begin with "body", "query" or "path".
        body: what the body should be; unknown fields are compared with its names.
    """
    first = problems[0]
    if first["loc"] == ("body",) and first["type"] in _NO_OBJECT:
        return InvalidJson(
            "the body is not a JSON object, or its content-type is not application/json: send one"
        )
    told = [_told(problem, body) for problem in problems[:_MOST_NAMED]]
    if len(problems) > _MOST_NAMED:
        told.append(f"and {len(problems) - _MOST_NAMED} more fields are wrong")
    kinds = {"missing": MissingParameter, "extra_forbidden": UnknownParameter}
    kind = kinds.get(first["type"], InvalidRequest)
    return kind("; ".join(told), param=_path(first["loc"]) or None)


def _told(problem: ErrorDetails, body: type[BaseModel] | None) -> str:
    path = _path(problem["loc"]) or "the body"
    value = "" if problem["type"] == "missing" else f"={shown(problem['input'])}"
    meant = ""
    if problem["type"] == "extra_forbidden":
        *above, name = problem["loc"][1:]
        owner = _model_at(body, above)
        meant = nearest(str(name), owner.model_fields) if owner else ""
    return f"{path}{value} {predicate(problem)}{meant}"


def _path(location: Sequence[str | int]) -> str:
    """A pydantic location as users write it, without its "body": messages[0].role."""
    pieces = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[1:])
    return "".join(pieces)[1 : 1 + _LONGEST_NAME]


def _model_at(model: type[BaseModel] | None, path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model of the object at this place of a body; None if it has none."""
    for part in path:
        if model is not None and isinstance(part, str):
            field = model.model_fields.get(part)
            model = None if field is None else _model_in(field.annotation)
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(part) for part in get_args(annotation))
    return next((model for model in inner if model is not None), None)
