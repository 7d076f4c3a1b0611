"""The methods that this build serves and trains, by name and options."""

from collections.abc import Callable, Mapping
from typing import Final

from server.adapters.methods.lowrank import LowRank
from server.adapters.methods.method import Method
from server.adapters.methods.randlora import RandLora
from server.adapters.methods.vera import Vera
from server.errors import InvalidAdapter

METHODS: Final[Mapping[str, Callable[[Mapping[str, str]], Method]]] = {
    "vera": Vera.of,
    "randlora": RandLora.of,
    "asymmetric-lora": LowRank.asymmetric,
    "lora": LowRank.lora,
}

_NO_OPTIONS: Final[Mapping[str, str]] = {}


def method_named(name: str, options: Mapping[str, str] = _NO_OPTIONS) -> Method:
    """The variant that a manifest's method and options tell of.

    Raises:
        InvalidAdapter: naming what is known, or the option that the method does not take.
    """
    make = METHODS.get(name)
    if make is None:
        raise InvalidAdapter(
            f"method {name!r} is unknown: this build serves {', '.join(sorted(METHODS))}"
        )
    return make(options)
