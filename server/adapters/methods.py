"""The methods that this build serves and trains."""

from collections.abc import Mapping
from typing import Final

from server.adapters.method import Method
from server.adapters.vera import Vera
from server.errors import InvalidAdapter

METHODS: Final[Mapping[str, Method]] = {method.name: method for method in (Vera(),)}


def method_named(name: str) -> Method:
    """Raises InvalidAdapter naming what is known."""
    method = METHODS.get(name)
    if method is None:
        raise InvalidAdapter(
            f"method {name!r} is unknown: this build serves {', '.join(sorted(METHODS))}"
        )
    return method
