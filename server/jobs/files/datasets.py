"""Check training lines before a job is queued. Knows no tokenizer, so it checks no lengths.

A file is JSONL in UTF-8, every line a chat or every line a completion:

    {"messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."},
                  {"role": "assistant", "content": "...", "weight": 1}]}
    {"prompt": "...", "completion": "..."}

A chat may have `tools`, and an assistant may call them (`server.jobs.files.tool_calls`). What else
a message may have is in `server.jobs.files.chat_lines`. Blank lines are skipped.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from adapters_store.outside_values import BadJson, read_json
from server.errors import InvalidDataset, LineProblem
from server.jobs.files.chat_lines import read_messages, unknown_in_messages
from server.jobs.files.line_values import (
    BadLine,
    Record,
    kind_of,
    text,
    unknown,
    written,
)
from server.jobs.files.tool_calls import tools_of

MIN_EXAMPLES = 10
MAX_EXAMPLES = 500_000
MAX_LINE_BYTES = 2**20
MAX_PROBLEMS = 1000
_LINE = ("messages", "tools", "parallel_tool_calls", "functions")
_SHOWN_PROBLEMS = 20
_SHOWN_FIELDS = 20
_SKIPPED_BYTES = 2**16
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Dataset:
    """Checked lines, each with its number (counted from 1), and which of the two kinds they are.

    A chat's record is {"messages": [{"role", "content", and perhaps "weight"}, ...]} with the
    contents as plain text, and perhaps "tools"; a completion's is {"prompt", "completion"}.
    `marked` says that the file begins with a byte order mark, which was ignored.
    """

    records: tuple[tuple[int, Record], ...]
    chat: bool
    marked: bool = False

    def __len__(self) -> int:
        return len(self.records)


def validate(
    lines: Iterable[bytes],
    *,
    min_examples: int = MIN_EXAMPLES,
    max_examples: int = MAX_EXAMPLES,
    param: str = "training_file",
    also: Callable[[Dataset], Sequence[LineProblem]] = lambda _: (),
) -> Dataset:
    """Check every line of a file.

    Args:
        lines: as `lines_of` reads them.
        param: the field of the request that named the file, for the error.
        also: finds more problems in the good lines of a file that has bad ones, so that the user
            sees all of them at once.

    Raises:
        InvalidDataset: `problems` holds the bad lines with their first faults, and the message
            shows some of them. After `MAX_PROBLEMS` the others are counted and not listed. After
            `max_examples` bad lines the rest of the file is not read.
    """
    records: list[tuple[int, Record]] = []
    problems: list[LineProblem] = []
    bad = 0
    kind: str | None = None
    marked = False
    for number, line in enumerate(lines, start=1):
        if number == 1:
            marked, line = line.startswith(BOM), line.removeprefix(BOM)
        if not line.strip() and number <= 2 * max_examples:
            continue
        try:
            if len(records) == max_examples:
                raise BadLine(f"more than {max_examples} examples; split the file")
            record = record_of(line)
            kind = same_kind(kind, record)
        except BadLine as problem:
            bad += 1
            if bad <= MAX_PROBLEMS:
                problems.append(LineProblem(number, str(problem), param))
            if max_examples in (bad, len(records)):
                break
            continue
        records.append((number, record))
    good = Dataset(tuple(records), chat=kind == "messages", marked=marked)
    if problems:
        others = also(good)
        bad += len(others)
        problems = sorted([*problems, *others], key=lambda problem: problem.line or 0)
        raise InvalidDataset(problem_summary(problems, bad), problems, param=param, count=bad)
    if len(records) < min_examples:
        counted = "1 example" if len(records) == 1 else f"{len(records)} examples"
        few = f"the file has {counted}; at least {min_examples} are needed"
        raise InvalidDataset(few, [LineProblem(None, few, param)], param=param)
    return good


def problem_summary(problems: Sequence[LineProblem], count: int | None = None) -> str:
    """How many lines are bad, and why the first are. `count`: more are bad than are listed."""
    shown = "; ".join(f"line {p.line}: {p.reason}" for p in problems[:_SHOWN_PROBLEMS])
    count = count or len(problems)
    more = count - _SHOWN_PROBLEMS
    end = f"; and {more} more" if more > 0 else ""
    told = f"{count} or more" if count >= MAX_EXAMPLES else count
    lines = "1 line is" if count == 1 else f"{told} lines are"
    return f"{lines} invalid. {shown[:8000]}{end}"


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a binary file; of one that is too long, one byte more than is allowed."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_SKIPPED_BYTES)
        yield line


def same_kind(kind: str | None, record: Record) -> str:
    """The kind of a record. Raises BadLine: those before are of another `kind`."""
    key = "messages" if "messages" in record else "prompt"
    if kind not in (None, key):
        raise BadLine(f"has {key!r} where the lines before have {kind!r}; use one kind in a file")
    return key


def record_of(line: bytes) -> Record:
    """What a line says, checked. Raises BadLine."""
    value = _object(line)
    messages = value.get("messages")
    if messages is not None:
        _refuse([*unknown(value, _LINE), *unknown_in_messages(messages)])
        chat: dict[str, object] = {"messages": read_messages(messages)}
        tools = tools_of(value)
        return chat | ({"tools": tools} if tools else {})
    if value.get("prompt") is not None or value.get("completion") is not None:
        _refuse([*unknown(value, ("prompt", "completion"))])
        return {
            "prompt": text(value.get("prompt"), "prompt"),
            "completion": written(value.get("completion"), "completion"),
        }
    raise BadLine("has neither 'messages' nor 'prompt' and 'completion'")


def _refuse(fields: Sequence[str]) -> None:
    """Refuse a line with unknown fields, all of them at once."""
    if fields:
        more = len(fields) - _SHOWN_FIELDS
        end = f" and {more} more" if more > 0 else ""
        names = ", ".join(map(repr, fields[:_SHOWN_FIELDS]))
        kind = "an unknown field" if len(fields) == 1 else "unknown fields"
        raise BadLine(f"has {kind}: {names}{end}; leave out what cannot be trained on")


def _object(line: bytes) -> dict[str, object]:
    if len(line) > MAX_LINE_BYTES:
        raise BadLine(f"longer than {MAX_LINE_BYTES} bytes; shorten or split it")
    if not line.strip():
        raise BadLine("blank, as are too many lines before it; remove them")
    try:
        value = read_json(line, unique_keys=True)
    except BadJson as error:
        raise BadLine(str(error)) from error
    if not isinstance(value, dict):
        raise BadLine(f"a JSON {kind_of(value)} where an object is needed")
    return value
