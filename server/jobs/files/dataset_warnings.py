"""Warn of what looks wrong in lines that can be trained on. Pure; knows no tokenizer."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from server.jobs.files.datasets import Dataset
from server.jobs.files.line_values import Record

_USUAL_EXAMPLES = 50
_SHOWN_LINES = 20
_UNREADABLE = "\ufffd"
_REPEATED = "repeats {}"
_CONTRARY = "answers the same question differently in {}"
_BROKEN = "holds U+FFFD, the sign of a wrong decoding, in {}"
_BLANKS = "has answers that begin or end with blanks, which the adapter learns, in {}"


def dataset_warnings(train: Dataset, valid: Dataset | None = None) -> list[str]:
    """Sentences, each with the numbers of its lines."""
    warnings = [*_of_file("the training file", train)]
    if valid is not None:
        warnings += _of_file("the validation file", valid)
        trained = {_digest(record) for _, record in train.records}
        common = [line for line, record in valid.records if _digest(record) in trained]
        if common:
            warnings.append(
                "the validation loss will say little, because the training file has "
                f"{_count(common)} of the validation file too: {_lines(common)}"
            )
    return warnings


def _of_file(name: str, dataset: Dataset) -> Iterable[str]:
    if dataset.marked:
        yield f"{name} begins with a byte order mark, which is ignored"
    if name == "the training file" and len(dataset) < _USUAL_EXAMPLES:
        yield f"{name} has {len(dataset)} examples; {_USUAL_EXAMPLES} to 100 usually teach more"
    for warning, lines in _odd_lines(dataset).items():
        if lines:
            yield f"{name} {warning.format(_count(lines))}: {_lines(lines)}"


def _odd_lines(dataset: Dataset) -> Mapping[str, Sequence[int]]:
    """Numbers of lines, by the warning about them."""
    odd: dict[str, list[int]] = {each: [] for each in (_REPEATED, _CONTRARY, _BROKEN, _BLANKS)}
    lines: set[bytes] = set()
    questions: set[bytes] = set()
    for line, record in dataset.records:
        digest, question = _digest(record), _digest(_question(record))
        if digest in lines:
            odd[_REPEATED].append(line)
        elif question in questions and record.get("prompt") != "":  # open-ended texts ask nothing
            odd[_CONTRARY].append(line)
        lines.add(digest)
        questions.add(question)
        if _UNREADABLE in _text(record):
            odd[_BROKEN].append(line)
        if any(answer != answer.strip() for answer in _answers(record)):
            odd[_BLANKS].append(line)
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


def _count(lines: Sequence[int]) -> str:
    return "1 line" if len(lines) == 1 else f"{len(lines)} lines"


def _lines(lines: Sequence[int]) -> str:
    end = ", ..." if len(lines) > _SHOWN_LINES else ""
    return f"line {', '.join(map(str, lines[:_SHOWN_LINES]))}{end}"
