"""What all request bodies share: strict types, bounded work, encodable text. Knows no endpoint.

A body may be some megabytes, and pydantic, which holds the interpreter's lock, makes an error for
each bad item: without bounds, one hostile body would stop every other request for many seconds.
"""

from collections.abc import Sized
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

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

NoItems = Annotated[list[None] | None, at_most(0)]
"""A list that must be empty."""
