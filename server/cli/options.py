"""Settings as command-line options: each field is `--its-name` and VERANDAH_ITS_NAME."""

import argparse
import logging
from typing import Any, get_args

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from server.config import Settings

PREFIX = "VERANDAH_"


class BadOption(Exception):
    """A value that an option or variable may not have, said in one line."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Give the parser an option for each field of Settings, unset unless it is given."""
    group = parser.add_argument_group(
        "settings", f"each is also an environment variable: --max-rank is {PREFIX}MAX_RANK"
    )
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = f"{field.description} ({_shown_default(field)})".replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(
                flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            group.add_argument(
                flag, dest=name, default=None, help=text, metavar=_placeholder(name, field)
            )


def read_settings(options: argparse.Namespace) -> Settings:
    """Options first, then the environment, then the defaults.

    Raises:
        BadOption: naming the option or variable at fault.
    """
    given = {
        name: value
        for name in Settings.model_fields
        if (value := getattr(options, name, None)) is not None
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        raise BadOption(_one_line(error, given)) from None


def set_log_level(settings: Settings) -> None:
    """Of our own loggers; other libraries are heard from warnings up, or all when debugging."""
    level = settings.log_level.upper()
    for package in ("server", "adapters_store"):
        logging.getLogger(package).setLevel(level)
    logging.getLogger().setLevel(level if level in ("DEBUG", "ERROR") else "WARNING")


def _placeholder(name: str, field: FieldInfo) -> str:
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return "{" + ",".join(choices) + "}"
    if name == "pinned":
        return "NAME,NAME"
    if field.annotation in (int, float):
        return "N" if field.annotation is int else "X"
    return name.rsplit("_")[-1].upper()


def _shown_default(field: FieldInfo) -> str:
    default: Any = field.default
    return f"default: {default}" if default not in (None, "", ()) else "default: none"


def _one_line(error: ValidationError, given: dict[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    reason = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return reason
    name = str(problem["loc"][0])
    secret = Settings.model_fields[name].annotation == SecretStr | None
    value = "" if secret else f" {problem['input']!r}"
    source = "--" + name.replace("_", "-") if name in given else PREFIX + name.upper()
    return f"{source}{value}: {reason[0].lower()}{reason[1:]}"
