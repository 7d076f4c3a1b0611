"""Finds environment variables that are meant for Verandah and that nothing reads."""

from collections.abc import Callable, Iterable, Mapping

from pydantic_settings import BaseSettings

from server.cli.arguments.command_parser import nearest
from server.config import PREFIX, Settings

_OTHERS = (f"{PREFIX}URL", f"{PREFIX}API_KEY")  # of the commands that talk to a server


def variables_of(*kinds: type[BaseSettings]) -> set[str]:
    """The names of the variables that set these fields."""
    return {
        str(kind.model_config["env_prefix"]) + name.upper()
        for kind in kinds
        for name in kind.model_fields
    }


def unknown_variables(
    environment: Mapping[str, str], others: Callable[[], Iterable[type[BaseSettings]]]
) -> list[str]:
    """A sentence for each variable whose name nothing reads; pydantic takes any case.

    `others` gives the options of other commands. It is called only if a variable is not one of the
    settings'.
    """
    ours = [name for name in environment if name.upper().startswith(PREFIX)]
    known = variables_of(Settings) | set(_OTHERS)
    unknown = [name for name in ours if name.upper() not in known]
    if unknown:
        known |= variables_of(*others())
    return [
        f"the environment variable {name} sets nothing{_remedy(name.upper(), known)}"
        for name in unknown
        if name.upper() not in known
    ]


def _remedy(name: str, known: Iterable[str]) -> str:
    # Without what all begin with, which would make every name near.
    found = nearest(name.removeprefix(PREFIX), [other.removeprefix(PREFIX) for other in known])
    if not found:
        return ": `verandah COMMAND --help` lists the names"
    return found.replace("mean ", f"mean {PREFIX}")
