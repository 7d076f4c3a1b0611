"""Check training lines before a job is queued. Knows no tokenizer, so it checks no lengths.

A file is JSONL in UTF-8, every line a chat or every line a completion:

    {"messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."},
                  {"role": "assistant", "content": "...", "weight": 1}]}
    {"prompt": "...", "completion": "..."}

A chat may have `tools`, and an assistant may call them (`server.jobs.files.tool_calls`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from adapters_store.outside_values import BadJson, read_json
from server.errors import InvalidDataset, LineProblem
from server.jobs.files.line_values import BadLine, Record, kind_of, only, shown, text, written
from server.jobs.files.tool_calls import check_answers, read_calls, read_tools

MIN_EXAMPLES = 10
MAX_EXAMPLES = 500_000
MAX_LINE_BYTES = 2**20
MAX_MESSAGES = 512
ROLES = ("system", "user", "assistant", "tool")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "system": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content", "weight", "tool_calls"),
    "tool": ("role", "content", "tool_call_id", "name"),
}
MAX_PROBLEMS = 1000
_SHOWN_PROBLEMS = 20
_SKIPPED_BYTES = 2**16
_BOM = b"\xef\xbb\xbf"
_FOLLOWS: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


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
        InvalidDataset: `problems` holds every bad line with its first fault, and the message shows
            some of them. After `MAX_PROBLEMS` bad lines the rest of the file is not read.
    """
    records: list[tuple[int, Record]] = []
    problems: list[LineProblem] = []
    kind: str | None = None
    marked = False
    for number, line in enumerate(lines, start=1):
        if number == 1:
            marked, line = line.startswith(_BOM), line.removeprefix(_BOM)
        try:
            if len(records) == max_examples:
                raise BadLine(f"more than {max_examples} examples; split the file")
            record = _record(line)
            kind = _same_kind(kind, record)
        except BadLine as problem:
            problems.append(LineProblem(number, str(problem)))
            if len(problems) == MAX_PROBLEMS or len(records) == max_examples:
                break
            continue
        records.append((number, record))
    good = Dataset(tuple(records), chat=kind == "messages", marked=marked)
    if problems:
        problems = sorted([*problems, *also(good)], key=lambda problem: problem.line)
        raise InvalidDataset(problem_summary(problems), problems, param=param)
    if len(records) < min_examples:
        raise InvalidDataset(
            f"the file has {len(records)} examples; at least {min_examples} are needed",
            (),
            param=param,
        )
    return good


def problem_summary(problems: Sequence[LineProblem]) -> str:
    """How many lines are bad, and why the first of them are."""
    shown = "; ".join(f"line {p.line}: {p.reason}" for p in problems[:_SHOWN_PROBLEMS])
    more = len(problems) - _SHOWN_PROBLEMS
    end = f"; and {more} more" if more > 0 else ""
    count = f"{MAX_PROBLEMS} or more" if len(problems) >= MAX_PROBLEMS else len(problems)
    lines = "1 line is" if count == 1 else f"{count} lines are"
    return f"{lines} invalid. {shown[:8000]}{end}"


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a binary file; of one that is too long, one byte more than is allowed."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_SKIPPED_BYTES)
        yield line


def _same_kind(kind: str | None, record: Record) -> str:
    key = "messages" if "messages" in record else "prompt"
    if kind not in (None, key):
        raise BadLine(f"has {key!r} where the lines before have {kind!r}; use one kind in a file")
    return key


def _record(line: bytes) -> Record:
    value = _object(line)
    if "messages" in value:
        only(value, ("messages", "tools", "parallel_tool_calls"), "the line")
        chat: dict[str, object] = {"messages": _messages(value["messages"])}
        return chat | ({"tools": read_tools(value["tools"])} if "tools" in value else {})
    if "prompt" in value or "completion" in value:
        only(value, ("prompt", "completion"), "the line")
        return {
            "prompt": text(value.get("prompt"), "prompt"),
            "completion": written(value.get("completion"), "completion"),
        }
    raise BadLine("has neither 'messages' nor 'prompt' and 'completion'")


def _object(line: bytes) -> dict[str, object]:
    if len(line) > MAX_LINE_BYTES:
        raise BadLine(f"longer than {MAX_LINE_BYTES} bytes; shorten or split it")
    if not line.strip():
        raise BadLine("empty line; remove it")
    try:
        value = read_json(line)
    except BadJson as error:
        raise BadLine(str(error)) from error
    if not isinstance(value, dict):
        raise BadLine(f"a JSON {kind_of(value)} where an object is needed")
    return value


def _messages(value: object) -> list[Record]:
    if not isinstance(value, list) or not value:
        raise BadLine("'messages' is not a list with something in it")
    if len(value) > MAX_MESSAGES:
        raise BadLine(f"{len(value)} messages; at most {MAX_MESSAGES} are allowed")
    messages: list[Record] = []
    previous: str | None = None
    for index, item in enumerate(value):
        message = _message(item, f"messages[{index}]")
        previous = _follow(previous, str(message["role"]), f"messages[{index}]")
        messages.append(message)
    if previous != "assistant":
        raise BadLine(f"the last message is the {previous}'s; it must be the assistant's")
    if all(m.get("weight") == 0 for m in messages if m["role"] == "assistant"):
        raise BadLine("every assistant message has weight 0: there is nothing to learn")
    check_answers(messages)
    return messages


def _message(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise BadLine(f"{where} is a JSON {kind_of(value)} where an object is needed")
    role = value.get("role")
    if role not in ROLES:
        raise BadLine(f"{where}.role is {shown(role)}; known are {', '.join(ROLES)}")
    only(value, _KEYS[role], where)
    message: dict[str, object] = {"role": role}
    calls = value.get("tool_calls")
    if value.get("content") is not None or calls is None:  # a call needs no text
        read = text if role in ("system", "tool") else written
        message["content"] = read(value.get("content"), where)
    if calls is not None:
        message["tool_calls"] = read_calls(calls, where)
    for key in ("tool_call_id", "name"):
        if key in value:
            message[key] = text(value[key], f"{where}.{key}")
    if "weight" in value:
        weight = value["weight"]
        if type(weight) is not int or weight not in (0, 1):
            raise BadLine(f"{where}.weight is {shown(weight)}; it must be 0 or 1")
        message["weight"] = weight
    return message


def _follow(previous: str | None, role: str, where: str) -> str:
    allowed = _FOLLOWS[previous]
    if role not in allowed:
        place = f"after {previous}" if previous else "at the start"
        raise BadLine(f"{where} is {role} {place}; expected {' or '.join(allowed)}")
    return role
