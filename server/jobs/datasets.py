"""Training lines, checked before anything is queued. Knows no tokenizer: lengths are not checked.

A file is JSONL in UTF-8, every line a chat or every line a completion:

    {"messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."},
                  {"role": "assistant", "content": "...", "weight": 1}]}
    {"prompt": "...", "completion": "..."}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.errors import InvalidDataset, LineProblem

MIN_EXAMPLES = 10
MAX_EXAMPLES = 500_000
MAX_LINE_BYTES = 2**20
MAX_MESSAGES = 512
ROLES = ("system", "user", "assistant", "tool")
_SHOWN_PROBLEMS = 20
_BOM = b"\xef\xbb\xbf"
_FOLLOWS: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}

Record = Mapping[str, object]


@dataclass(frozen=True)
class Dataset:
    """Checked lines, each with its number (counted from 1), and which of the two kinds they are.

    A chat's record is {"messages": [{"role", "content", and perhaps "weight"}, ...]} with the
    contents as plain text; a completion's is {"prompt", "completion"}.
    """

    records: tuple[tuple[int, Record], ...]
    chat: bool

    def __len__(self) -> int:
        return len(self.records)


class _BadLine(Exception):
    """Why a line cannot be used."""


def validate(
    lines: Iterable[bytes],
    *,
    min_examples: int = MIN_EXAMPLES,
    max_examples: int = MAX_EXAMPLES,
    param: str = "training_file",
) -> Dataset:
    """Check every line of a file opened in binary mode.

    Args:
        param: the field of the request that named the file, for the error.

    Raises:
        InvalidDataset: `problems` holds every bad line with its first fault; the message shows
            some of them and counts all.
    """
    records: list[tuple[int, Record]] = []
    problems: list[LineProblem] = []
    kind: str | None = None
    for number, line in enumerate(lines, start=1):
        try:
            record = _record(line.removeprefix(_BOM) if number == 1 else line)
            kind = _same_kind(kind, record)
        except _BadLine as problem:
            problems.append(LineProblem(number, str(problem)))
            continue
        if len(records) < max_examples:
            records.append((number, record))
        else:
            problems.append(LineProblem(number, f"more than {max_examples} examples"))
    if problems:
        raise InvalidDataset(_summary(problems), problems, param=param)
    if len(records) < min_examples:
        raise InvalidDataset(
            f"the file has {len(records)} examples; at least {min_examples} are needed",
            (),
            param=param,
        )
    return Dataset(tuple(records), chat=kind == "messages")


def _summary(problems: Sequence[LineProblem]) -> str:
    shown = "; ".join(f"line {p.line}: {p.reason}" for p in problems[:_SHOWN_PROBLEMS])
    more = len(problems) - _SHOWN_PROBLEMS
    end = f"; and {more} more" if more > 0 else ""
    lines = "1 line is" if len(problems) == 1 else f"{len(problems)} lines are"
    return f"{lines} invalid. {shown[:8000]}{end}"


def _same_kind(kind: str | None, record: Record) -> str:
    own = "messages" if "messages" in record else "prompt"
    if kind not in (None, own):
        raise _BadLine(f"has {own!r} where the lines before have {kind!r}; use one kind throughout")
    return own


def _record(line: bytes) -> Record:
    value = _object(line)
    if "messages" in value:
        _only(value, ("messages",), "the line")
        return {"messages": _messages(value["messages"])}
    if "prompt" in value or "completion" in value:
        _only(value, ("prompt", "completion"), "the line")
        return {
            "prompt": _text(value.get("prompt"), "prompt"),
            "completion": _written(value.get("completion"), "completion"),
        }
    raise _BadLine("has neither 'messages' nor 'prompt' and 'completion'")


def _object(line: bytes) -> dict[str, object]:
    if len(line) > MAX_LINE_BYTES:
        raise _BadLine(f"{len(line)} bytes long; at most {MAX_LINE_BYTES} are allowed")
    if not line.strip():
        raise _BadLine("empty line; remove it")
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _BadLine(f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    except RecursionError as error:
        raise _BadLine("nested too deeply") from error
    except ValueError as error:
        raise _BadLine(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _BadLine(f"a JSON {_kind(value)} where an object is needed")
    return value


def _messages(value: object) -> list[Record]:
    if not isinstance(value, list) or not value:
        raise _BadLine("'messages' is not a list with something in it")
    if len(value) > MAX_MESSAGES:
        raise _BadLine(f"{len(value)} messages; at most {MAX_MESSAGES} are allowed")
    messages: list[Record] = []
    previous: str | None = None
    for index, item in enumerate(value):
        message = _message(item, f"messages[{index}]")
        previous = _follow(previous, str(message["role"]), f"messages[{index}]")
        messages.append(message)
    if previous != "assistant":
        raise _BadLine(f"the last message is the {previous}'s; it must be the assistant's")
    if all(m.get("weight") == 0 for m in messages if m["role"] == "assistant"):
        raise _BadLine("every assistant message has weight 0: there is nothing to learn")
    return messages


def _message(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise _BadLine(f"{where} is a JSON {_kind(value)} where an object is needed")
    role = value.get("role")
    if role not in ROLES:
        raise _BadLine(f"{where}.role is {_shown(role)}; known are {', '.join(ROLES)}")
    allowed = ("role", "content", "weight") if role == "assistant" else ("role", "content")
    _only(value, allowed, where)
    read = _text if role == "system" else _written
    message: dict[str, object] = {"role": role, "content": read(value.get("content"), where)}
    if "weight" in value:
        weight = value["weight"]
        if type(weight) is not int or weight not in (0, 1):
            raise _BadLine(f"{where}.weight is {_shown(weight)}; it must be 0 or 1")
        message["weight"] = weight
    return message


def _follow(previous: str | None, role: str, where: str) -> str:
    allowed = _FOLLOWS[previous]
    if role not in allowed:
        place = f"after {previous}" if previous else "at the start"
        raise _BadLine(f"{where} is {role} {place}; expected {' or '.join(allowed)}")
    return role


def _text(value: object, where: str) -> str:
    """A string, or the OpenAI API's list of text parts, joined."""
    if isinstance(value, list):
        value = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(value))
    if not isinstance(value, str):
        raise _BadLine(f"{where} has no text: it is {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _BadLine(f"{where} holds half of a surrogate pair, which is no character") from error
    return value


def _written(value: object, where: str) -> str:
    text = _text(value, where)
    if not text.strip():
        raise _BadLine(f"{where} is empty")
    return text


def _part(value: object, where: str) -> str:
    if isinstance(value, dict) and value.get("type") == "text":
        text = value.get("text")
        if isinstance(text, str):
            return text
    raise _BadLine(f"{where} is not a text part; only text can be learnt")


def _only(value: Mapping[str, object], allowed: Sequence[str], where: str) -> None:
    for key in value:
        if key not in allowed:
            raise _BadLine(f"{where} has an unknown key {key[:40]!r}; known: {', '.join(allowed)}")


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:40]


def _kind(value: object) -> str:
    kinds = {list: "list", str: "string", bool: "boolean", type(None): "null", dict: "object"}
    return kinds.get(type(value), "number")
