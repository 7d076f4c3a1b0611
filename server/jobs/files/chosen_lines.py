"""Some lines of a file, each with what it says or what is wrong with it. Knows no tokenizer."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from server.jobs.files.datasets import BOM, MAX_EXAMPLES, MAX_PROBLEMS, record_of, same_kind
from server.jobs.files.line_values import BadLine, Record

LAST_LINE: Final = 4 * MAX_EXAMPLES
"""No check of a file reads further than this: blank, good and bad lines have a limit each."""


@dataclass(frozen=True)
class ChosenLine:
    """A line, without its break. It has a record, or a problem."""

    number: int
    text: str
    record: Record | None
    problem: str = ""


def lines_from(lines: Iterable[bytes], first: int) -> Iterator[ChosenLine]:
    """The lines that are not blank, from one number on, judged as a check of the file judges them:
    all must be of the kind of the first good one. Among very many bad ones it is not looked for.

    Args:
        lines: as `server.jobs.files.datasets.lines_of` reads them.
        first: counted from 1.
    """
    kind: str | None = None
    bad = 0
    for number, line in _numbered(lines):
        before = number < first
        if not line.strip() or (before and (kind is not None or bad == MAX_PROBLEMS)):
            continue
        record, problem = None, ""
        try:
            record = record_of(line)
            kind = same_kind(kind, record)
        except BadLine as error:
            record, problem, bad = None, str(error), bad + 1
        if not before:
            yield ChosenLine(number, _text(line), record, problem)


def texts_of(lines: Iterable[bytes], numbers: Collection[int], longest: int) -> dict[int, str]:
    """The beginnings of some lines, by number: at most `longest` characters of each."""
    last = max(numbers, default=0)
    wanted = frozenset(numbers)
    some = islice(_numbered(lines), last)
    return {
        number: _text(line[: 4 * longest])[:longest] for number, line in some if number in wanted
    }


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(islice(lines, LAST_LINE), start=1):
        yield number, line.removeprefix(BOM) if number == 1 else line


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")
