"""What all requests share: strict types, known names, bounded work. Knows no endpoint.

A body may be some megabytes, and pydantic, which holds the interpreter's lock, makes an error for
each bad item: without bounds, one hostile body would stop every other request for many seconds.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence, Sized
from itertools import islice
from typing import Annotated

from fastapi import Request
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from adapters_store.outside_values import shown
from server.errors import InvalidRequest, UnknownParameter
from server.refused_fields import nearest

_MAX_FIELDS = 128
_MOST_NAMED = 8


class WireModel(BaseModel):
    """A JSON object in a request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: object) -> object:
        if isinstance(data, dict) and len(data) > _MAX_FIELDS:
            raise PydanticCustomError(
                "too_many_fields",
                "has more than {count} fields: leave some out",
                {"count": _MAX_FIELDS},
            )
        return data


def at_most(count: int) -> BeforeValidator:
    """Refuse a longer list or object before any of its items is checked."""

    def check(value: object) -> object:
        if isinstance(value, Sized) and not isinstance(value, str) and len(value) > count:
            raise PydanticCustomError(
                "too_many", "has more than {count} items: give fewer", {"count": count}
            )
        return value

    return BeforeValidator(check)


def compact(characters: int) -> BeforeValidator:
    """Refuse a value that has more text, keys and numbers than so many characters hold."""

    def check(value: object) -> object:
        left, values = characters, [value]
        while values and left >= 0:
            it = values.pop()
            if isinstance(it, dict):
                values.extend(it.keys())
                values.extend(it.values())
            elif isinstance(it, list):
                values.extend(it)
            elif isinstance(it, str):
                encodable(it)
                left -= len(it)
            left -= 1
        if left < 0:
            raise PydanticCustomError(
                "too_long",
                "holds more than {count} characters: give fewer",
                {"count": characters},
            )
        return value

    return BeforeValidator(check)


def encodable(text: str) -> str:
    """Return `text`. Refuse half of a surrogate pair, which JSON can write but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "not_text", "holds half of a surrogate pair, which is no character: leave it out"
        ) from None
    return text


Text = Annotated[str, AfterValidator(encodable)]


def only(*harmless: object) -> tuple[BeforeValidator, WithJsonSchema]:
    """Marks a field that is not supported: null and these values ask for nothing, and are taken."""
    values = (None, *harmless)

    def check(value: object) -> object:
        if not any(type(value) is type(it) and value == it for it in values):
            raise unsupported()
        return value

    return BeforeValidator(check), WithJsonSchema({"enum": list(values)})


def unsupported(remedy: str = "leave it out") -> PydanticCustomError:
    """The refusal of a field that would change the answer."""
    return PydanticCustomError("unsupported", f"is not supported: {remedy}")


Ignored = Annotated[object, WithJsonSchema({"description": "Changes nothing."})]
Null = Annotated[object, *only()]
NullOrFalse = Annotated[object, *only(False)]
NullOrTrue = Annotated[object, *only(True)]
NullOrEmpty = Annotated[object, *only([], {}, "")]


def only_fields(*names: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency: a form has no other fields than `names`, and none twice.

    Raises:
        InvalidRequest, UnknownParameter: naming the field.
    """

    async def check(request: Request) -> None:
        fields = [name for name, _ in (await request.form()).multi_items()]
        _refuse_unknown("form field", dict.fromkeys(fields), names, f"send {', '.join(names)}")
        for name in fields:
            if fields.count(name) > 1:
                raise InvalidRequest(f"the form has {shown(name)} twice: send it once", param=name)

    return check


async def only_known_query(request: Request) -> None:
    """A dependency: the query has only parameters of the endpoint. An endpoint that has `metadata`
    reads those that begin so itself.

    Raises:
        UnknownParameter: naming the other one.
    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    filters = "metadata" in known
    sent = [it for it in request.query_params if not (filters and it.startswith("metadata"))]
    _refuse_unknown(
        "query parameter", sent, known, f"this endpoint has {', '.join(known) or 'none'}"
    )


def _refuse_unknown(kind: str, sent: Iterable[str], known: Sequence[str], remedy: str) -> None:
    """Raise UnknownParameter if any name that was sent is not known; it names the first few."""
    unknown = list(islice((name for name in sent if name not in known), _MOST_NAMED))
    if unknown:
        named = ", ".join(shown(name) + nearest(name, known) for name in unknown)
        is_or_are = f" {named} is" if len(unknown) == 1 else f"s {named} are"
        raise UnknownParameter(f"the {kind}{is_or_are} unknown: {remedy}", param=unknown[0][:80])
