"""Makes command-line options of settings' fields. Knows no command.

A field of `Settings` such as `max_rank` is the option `--max-rank` and the environment variable
`VERANDAH_MAX_RANK`. The variables of a command's own options carry its name: `VERANDAH_TRAIN_RANK`.
"""

import argparse
import logging
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings

from adapters_store.outside_values import shown
from server.config import BadOption, Settings
from server.refused_fields import predicate

Fields = TypeVar("Fields", bound=BaseSettings)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of Settings; its default is None."""
    parser.usage = "%(prog)s [options]"  # not all sixty
    add_fields(parser, Settings, "settings", example="max_rank")


def add_fields(
    parser: argparse.ArgumentParser, kind: type[BaseSettings], title: str, *, example: str
) -> None:
    """Add an option for each field of `kind`; its default is None."""
    variable = kind.model_config["env_prefix"] + example.upper()
    group = parser.add_argument_group(
        title, f"each is also an environment variable: {_flag(example)} is {variable}"
    )
    for name, field in kind.model_fields.items():
        text = f"{field.description}{_shown_default(field)}".replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=text)
        elif get_origin(_types(field.annotation)[0]) is dict:
            group.add_argument(_flag(name), help=text, metavar="KEY=VALUE", action="append")
        else:
            group.add_argument(_flag(name), help=text, metavar=_placeholder(name, field))


def read_fields(options: argparse.Namespace, kind: type[Fields]) -> Fields:
    """Options first, then the environment, then the defaults.

    Raises:
        BadOption: naming the wrong option or variable.
    """
    values = {
        name: value
        for name in kind.model_fields
        if (value := getattr(options, name, None)) is not None
    }
    try:
        return kind(**values)
    except ValidationError as error:
        raise BadOption(_one_line(error, values, kind)) from None


def set_log_level(settings: Settings) -> None:
    """Set the level of this project's loggers. Others log warnings; all log more with debug."""
    level = settings.log_level.upper()
    for package in ("server", "adapters_store"):
        logging.getLogger(package).setLevel(level)
    logging.getLogger().setLevel(level if level in ("DEBUG", "ERROR") else "WARNING")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _types(annotation: object) -> tuple[Any, ...]:
    """The types of a union without None, or the one type."""
    if get_origin(annotation) not in (Union, UnionType):
        return (annotation,)
    return tuple(part for part in get_args(annotation) if part is not type(None))


def _placeholder(name: str, field: FieldInfo) -> str:
    kinds = _types(field.annotation)
    choices = [choice for choice in get_args(kinds[0]) if isinstance(choice, str)]
    if choices:
        return "{" + ",".join(choices) + "}"
    if get_origin(kinds[0]) is tuple:
        noun = "N" if int in get_args(kinds[0]) else "NAME"
        return f"{noun},{noun}"
    if kinds[0] in (int, float):
        return "N" if kinds[0] is int else "X"
    return name.rsplit("_")[-1].upper()


def _shown_default(field: FieldInfo) -> str:
    """Empty for None, whose meaning the description gives."""
    default: Any = field.default
    if default is None:
        return ""
    return f" (default: {default})" if default not in ("", ()) else " (default: none)"


def _one_line(error: ValidationError, values: dict[str, Any], kind: type[BaseSettings]) -> str:
    return "; ".join(_told(it, values, kind) for it in error.errors(include_url=False))


def _told(problem: ErrorDetails, values: dict[str, Any], kind: type[BaseSettings]) -> str:
    reason = predicate(problem).removeprefix("Value error, ").removeprefix("is ")
    if not problem["loc"]:
        return reason
    name = str(problem["loc"][0])
    secret = SecretStr in _types(kind.model_fields[name].annotation)
    value = "" if secret else f" {shown(problem['input'])}"
    source = _flag(name) if name in values else kind.model_config["env_prefix"] + name.upper()
    return f"{source}{value}: {reason}"
