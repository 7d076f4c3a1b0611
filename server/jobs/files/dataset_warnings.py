"""Warn of what looks wrong in lines that can be trained on. Pure; knows no tokenizer."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from server.jobs.files.datasets import Dataset
from server.jobs.files.line_values import Record

_USUAL_EXAMPLES = 50
_SHOWN_LINES = 20
_UNREADABLE = "\ufffd"
_REPEATED = "repeats {}"
_CONTRARY = "answers the same question differently in {}"
_BROKEN = "holds U+FFFD, the sign of a wrong decoding, in {}"
_BLANKS = "has answers that begin or end with blanks, which the adapter learns, in {}"
_SAME_ROLE = "has two messages in a row of one role, the user's or the assistant's, in {}"
_BEGINS = (
    "has chats that begin with the assistant, whose first message is read and not learnt, in {}"
)
_WEIGHTS = "has a weight on messages that are not the assistant's, where it changes nothing, in {}"
_REASONING = "has reasoning_content, which the base's chat template leaves out, in {}"
_ODD_CHATS = (_SAME_ROLE, _BEGINS, _WEIGHTS, _REASONING)


def dataset_warnings(
    train: Dataset, valid: Dataset | None = None, *, reasoning: bool = True
) -> list[str]:
    """Sentences, each with the numbers of its lines.

    Args:
        reasoning: whether the base's chat template shows `reasoning_content`.
    """
    warnings = [*_of_file("the training file", train, reasoning)]
    if valid is not None:
        warnings += _of_file("the validation file", valid, reasoning)
        trained = {_digest(record) for _, record in train.records}
        common = [line for line, record in valid.records if _digest(record) in trained]
        if common:
            warnings.append(
                "the validation loss will say little, because the training file has "
                f"{_count(common)} of the validation file too: {_lines(common)}"
            )
    return warnings


def _of_file(name: str, dataset: Dataset, reasoning: bool) -> Iterable[str]:
    if dataset.marked:
        yield f"{name} begins with a byte order mark, which is ignored"
    if name == "the training file" and len(dataset) < _USUAL_EXAMPLES:
        yield f"{name} has {len(dataset)} examples; {_USUAL_EXAMPLES} to 100 usually teach more"
    for warning, lines in _odd_lines(dataset).items():
        if lines and not (reasoning and warning == _REASONING):
            yield f"{name} {warning.format(_count(lines))}: {_lines(lines)}"


def _odd_lines(dataset: Dataset) -> Mapping[str, Sequence[int]]:
    """Numbers of lines, by the warning about them."""
    kinds = (_REPEATED, _CONTRARY, _BROKEN, _BLANKS, *_ODD_CHATS)
    odd: dict[str, list[int]] = {kind: [] for kind in kinds}
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
        for kind in _odd_in_chat(_messages(record)):
            odd[kind].append(line)
    return odd


def _odd_in_chat(messages: Sequence[Record]) -> Iterable[str]:
    roles = [message["role"] for message in messages]
    if any(role == after and role in ("user", "assistant") for role, after in pairwise(roles)):
        yield _SAME_ROLE
    if roles[:1] == ["assistant"]:
        yield _BEGINS
    if any("weight" in message and message["role"] != "assistant" for message in messages):
        yield _WEIGHTS
    if any("reasoning_content" in message for message in messages):
        yield _REASONING


def _messages(record: Record) -> Sequence[Record]:
    """A chat's; a completion has none."""
    messages = record.get("messages")
    return messages if isinstance(messages, Sequence) else ()


def _digest(value: object) -> bytes:
    """Stands for a record, which takes more memory as a key."""
    return hashlib.blake2b(_text(value).encode(), digest_size=16).digest()


def _question(record: Record) -> object:
    """A record without its last answer."""
    messages = _messages(record)
    return {**record, "messages": messages[:-1]} if messages else record.get("prompt")


def _answers(record: Record) -> Iterable[str]:
    """A chat's answers. A completion is left out: it may rightly begin with a blank."""
    for message in _messages(record):
        if message["role"] == "assistant" and message.get("weight") != 0:
            yield str(message.get("content") or "")


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _count(lines: Sequence[int]) -> str:
    return "1 line" if len(lines) == 1 else f"{len(lines)} lines"


def _lines(lines: Sequence[int]) -> str:
    end = ", ..." if len(lines) > _SHOWN_LINES else ""
    return f"line {', '.join(map(str, lines[:_SHOWN_LINES]))}{end}"
