"""Warn of what looks wrong in lines that can be trained on. Pure; knows no tokenizer."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from server.jobs.files.datasets import Dataset
from server.jobs.files.lines import Record

_USUAL_EXAMPLES = 50
_SHOWN_LINES = 20
_UNREADABLE = "\ufffd"


def dataset_warnings(train: Dataset, valid: Dataset | None = None) -> list[str]:
    """Sentences, each with the numbers of its lines."""
    warnings = [*_of_file("the training file", train)]
    if valid is not None:
        warnings += _of_file("the validation file", valid)
        trained = {_digest(record) for _, record in train.records}
        same = [line for line, record in valid.records if _digest(record) in trained]
        if same:
            warnings.append(
                "the validation loss will say little, because the training file has "
                f"{_count(same, 'line')} of the validation file too: {_lines(same)}"
            )
    return warnings


def _of_file(name: str, dataset: Dataset) -> Iterable[str]:
    if dataset.marked:
        yield f"{name} begins with a byte order mark, which is ignored"
    if name == "the training file" and len(dataset) < _USUAL_EXAMPLES:
        yield f"{name} has {len(dataset)} examples; {_USUAL_EXAMPLES} to 100 usually teach more"
    odd = _odd_lines(dataset)
    for lines, what in (
        (odd.repeated, "repeats {}"),
        (odd.contrary, "answers the same question differently in {}"),
        (odd.broken, "holds U+FFFD, the sign of a wrong decoding, in {}"),
        (odd.blank, "has answers that begin or end with blanks, which the adapter learns, in {}"),
    ):
        if lines:
            yield f"{name} {what.format(_count(lines, 'line'))}: {_lines(lines)}"


@dataclass(frozen=True)
class _Odd:
    """Numbers of lines, by what is odd about them."""

    repeated: list[int] = field(default_factory=list)
    contrary: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)


def _odd_lines(dataset: Dataset) -> _Odd:
    odd = _Odd()
    lines: set[bytes] = set()
    questions: set[bytes] = set()
    for line, record in dataset.records:
        own, question = _digest(record), _digest(_question(record))
        if own in lines:
            odd.repeated.append(line)
        elif question in questions:
            odd.contrary.append(line)
        lines.add(own)
        questions.add(question)
        if _UNREADABLE in _text(record):
            odd.broken.append(line)
        if any(answer != answer.strip() for answer in _answers(record)):
            odd.blank.append(line)
    return odd


def _digest(value: object) -> bytes:
    """Stands for a record, which takes more memory as a key."""
    return hashlib.blake2b(_text(value).encode(), digest_size=16).digest()


def _question(record: Record) -> object:
    """A record without its last answer."""
    messages = record.get("messages")
    if isinstance(messages, Sequence):
        return {**record, "messages": messages[:-1]}
    return record.get("prompt")


def _answers(record: Record) -> Iterable[str]:
    """A chat's answers. A completion is left out: it may rightly begin with a blank."""
    messages = record.get("messages")
    for message in messages if isinstance(messages, Sequence) else ():
        if message["role"] == "assistant" and message.get("weight") != 0:
            yield str(message.get("content") or "")


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _count(lines: Sequence[int], what: str) -> str:
    return f"1 {what}" if len(lines) == 1 else f"{len(lines)} {what}s"


def _lines(lines: Sequence[int]) -> str:
    more = ", ..." if len(lines) > _SHOWN_LINES else ""
    return "line " + ", ".join(map(str, lines[:_SHOWN_LINES])) + more
