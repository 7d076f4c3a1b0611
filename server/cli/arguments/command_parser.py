"""Reads a command's arguments. A wrong one is told with the nearest that exists."""

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """A parser that keeps its text as it is written, and whose errors are short."""

    def __init__(
        self, program: str, description: str, *, epilog: str, usage: str | None = None
    ) -> None:
        super().__init__(
            program,
            description=description,
            epilog=epilog,
            usage=usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Like `parse_args`. Exits with status 2 if an argument is wrong."""
        options, rest = self.parse_known_args(arguments)
        if rest:
            self.error(self._unknown(rest[0]))
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(
            2,
            f"{self.format_usage()}{self.prog}: {message}\n"
            f"`{self.prog} --help` explains every argument.\n",
        )

    def _unknown(self, argument: str) -> str:
        name = argument.partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {argument!r}"
        return f"unknown option {name}{nearest(name, self._option_string_actions)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say after an unknown word: the nearest known one, or nothing."""
    names = list(known)
    initials = [name for name in names if _initials(name) == word.lstrip("-")]  # as --lr
    found = initials or get_close_matches(word, names, 1)
    return f": did you mean {found[0]}?" if found else ""


def _initials(name: str) -> str:
    return "".join(part[0] for part in name.split("-") if part)
