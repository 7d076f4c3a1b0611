"""Lists the methods of this build. A new method is its own file and one more entry here."""

from collections.abc import Mapping
from typing import Final

from server.adapters.methods.lowrank.lowrank import ASYMMETRIC_LORA, LORA
from server.adapters.methods.method import Method
from server.adapters.methods.method_kind import MethodKind
from server.adapters.methods.randlora.randlora import RANDLORA
from server.adapters.methods.vera.vera import VERA
from server.errors import InvalidAdapter
from server.jobs.queue.method_spec import MethodSpecs

METHODS: tuple[MethodKind, ...] = (VERA, RANDLORA, ASYMMETRIC_LORA, LORA)
"""The first is what a job trains that names none."""

_NO_OPTIONS: Final[Mapping[str, str]] = {}


def methods_by_name() -> Mapping[str, MethodKind]:
    """All methods, in the order of the list."""
    return {kind.spec.name: kind for kind in METHODS}


def method_specs() -> MethodSpecs:
    """The descriptions of all methods, for parts that know no tensors."""
    return {name: kind.spec for name, kind in methods_by_name().items()}


def kind_named(name: str) -> MethodKind:
    """Raises InvalidAdapter naming the methods that there are."""
    kind = methods_by_name().get(name)
    if kind is None:
        raise InvalidAdapter(
            f"method {name!r} is unknown: this build serves {', '.join(sorted(methods_by_name()))}"
        )
    return kind


def method_named(name: str, options: Mapping[str, str] = _NO_OPTIONS) -> Method:
    """The variant that a manifest's method and options name.

    Raises:
        InvalidAdapter: naming the methods that there are, or the option that this one lacks.
    """
    return kind_named(name).variant_of(options)
