"""What all requests share: strict types, known names, bounded work. Knows no endpoint.

A body may be some megabytes, and pydantic, which holds the interpreter's lock, makes an error for
each bad item: without bounds, one hostile body would stop every other request for many seconds.
"""

from collections.abc import Awaitable, Callable, Sized
from typing import Annotated

from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from adapters_store.outside_values import shown
from server.errors import InvalidRequest, UnknownParameter

_MAX_FIELDS = 64


class WireModel(BaseModel):
    """A JSON object in a request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: object) -> object:
        if isinstance(data, dict) and len(data) > _MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "an object with too many fields")
        return data


def at_most(count: int) -> BeforeValidator:
    """Refuse a longer list or object before any of its items is checked."""

    def check(value: object) -> object:
        if isinstance(value, Sized) and not isinstance(value, str) and len(value) > count:
            raise PydanticCustomError("too_long", "more than {count} items", {"count": count})
        return value

    return BeforeValidator(check)


def encodable(text: str) -> str:
    """Return `text`. Refuse half of a surrogate pair, which JSON can write but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "not_text", "holds half of a surrogate pair, which is no character"
        ) from None
    return text


Text = Annotated[str, AfterValidator(encodable)]


def only_fields(*names: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency: a form has no other fields than `names`, and none twice.

    Raises:
        InvalidRequest, UnknownParameter: naming the field.
    """

    async def check(request: Request) -> None:
        fields = [name for name, _ in (await request.form()).multi_items()]
        for name in fields:
            if name not in names:
                raise UnknownParameter(
                    f"the form field {shown(name)} is unknown: send {', '.join(names)}",
                    param=name[:80],
                )
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
    for name in request.query_params:
        filters = name.startswith("metadata") and "metadata" in known
        if name not in known and not filters:
            raise UnknownParameter(
                f"the query parameter {shown(name)} is unknown: this endpoint has "
                f"{', '.join(known) or 'none'}",
                param=name[:80],
            )


NoItems = Annotated[list[None] | None, at_most(0)]
"""A list that must be empty."""
