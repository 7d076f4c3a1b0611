"""Prints lists and records: as tables and columns in a terminal, else as lines for programs."""

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from server.control_characters import visible

_WIDE = 10_000  # characters


def print_json(document: object) -> None:
    """One JSON document, on one line."""
    print(json.dumps(document))


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; outside a terminal, a line for each row, with tabs between its cells."""
    console = Console()
    if not console.is_terminal:
        for row in (columns, *rows):
            print("\t".join(map(one_line, row)))
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    # An id that is cut is of no use, so a wide table runs over the terminal's edge.
    wide = console.options.update(width=_WIDE)
    Console(width=max(console.width, Measurement.get(console, wide, table).maximum)).print(table)


def print_fields(document: Mapping[str, object]) -> None:
    """A line for each field that is set. Names of inner fields are joined with dots."""
    fields = list(_fields(document))
    width = max((len(name) for name, _ in fields), default=0)
    for name, text in fields:
        print(f"{name:{width}}  {one_line(text)}")


def _fields(document: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            if value:
                yield prefix + name, ", ".join(map(str, value))
        elif value is not None:
            yield prefix + name, str(value)


def problem_lines(problems: Iterable[Mapping[str, object]]) -> str:
    """Wrong lines of files, one a line."""
    return "\n".join(map(_problem, problems))


def _problem(problem: Mapping[str, object]) -> str:
    file = "validation file, " if problem.get("param") == "validation_file" else ""
    line = "" if problem["line"] is None else f"line {problem['line']}: "
    return f"  {file}{line}{one_line(str(problem['reason']))}"


def one_line(text: str) -> str:
    """The text without line breaks and without what would drive a terminal."""
    return visible(text.replace("\n", " "))


def moment(seconds: object) -> str:
    """A time as people read it, of this machine's zone; empty: none."""
    if not isinstance(seconds, int | float):
        return ""
    return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def short_moment(seconds: object) -> str:
    """`moment` in at most 11 characters: without the year if it is this one, else the day."""
    text = moment(seconds)
    return text[5:] if text[:4] == str(datetime.date.today().year) else text[:10]
