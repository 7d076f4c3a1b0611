"""Questions of a job's own file, and how they were answered before and after. Knows no queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.bases.tokenizer import ChatTokenizer
from server.jobs.queue.evaluation import Sample
from server.training.run.examples import Example

MAX_NEW = 48
"""Tokens of an answer, at most."""
_QUESTIONS = 3
_LONGEST_PROMPT = 1024  # tokens
_SHOWN = 500  # characters of a question


@dataclass(frozen=True)
class Question:
    """What is asked, as people and as the model read it, and the file's own answer."""

    text: str
    prompt: tuple[int, ...]
    expected: tuple[int, ...]


def questions_of(
    lines: Sequence[tuple[Mapping[str, object], Sequence[Example]]], max_context: int
) -> tuple[Question, ...]:
    """At most three, spread over the lines, each asking for its line's last answer.

    Args:
        lines: records, each with its examples.
    """
    longest = min(_LONGEST_PROMPT, max_context - MAX_NEW)
    found: list[Question] = []
    for record, examples in lines:
        for example in examples[-1:]:
            start = _last_answer(example)
            if 0 < start <= longest:
                text = _cut(_asked(record))
                found.append(Question(text, example.tokens[:start], example.tokens[start:]))
    if len(found) <= _QUESTIONS:
        return tuple(found)
    return tuple(found[i * (len(found) - 1) // (_QUESTIONS - 1)] for i in range(_QUESTIONS))


def sample_of(
    question: Question, base: Sequence[int], adapter: Sequence[int], tokenizer: ChatTokenizer
) -> Sample:
    """A question with three answers to it, given as tokens."""
    texts = [_text(answer, tokenizer) for answer in (question.expected, base, adapter)]
    return Sample(question.text, *texts)


def _last_answer(example: Example) -> int:
    """Where the last stretch of tokens begins that count."""
    start = len(example.counts)
    while start and example.counts[start - 1]:
        start -= 1
    return start


def _asked(record: Mapping[str, object]) -> str:
    """What the user said last before the last answer that is learnt."""
    messages = record.get("messages")
    if not isinstance(messages, Sequence):
        return str(record.get("prompt", ""))
    answers = [
        i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight") != 0
    ]
    before = messages[: answers[-1]] if answers else messages
    said = [m.get("content") for m in before if m["role"] != "assistant"]
    return _plain(said[-1]) if said else ""


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def _text(tokens: Sequence[int], tokenizer: ChatTokenizer) -> str:
    """Without what ends an answer; cut after `MAX_NEW` tokens."""
    text = _printable(tokenizer.decode(tokens[:MAX_NEW])).strip()
    ended = len(tokens) <= MAX_NEW and tokens[-1:] and tokens[-1] in tokenizer.special_ids
    return text if ended or len(tokens) < MAX_NEW else f"{text} ..."


def _cut(text: str) -> str:
    shown = _printable(text).strip()
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} ..."


def _printable(text: str) -> str:
    """What neither a database nor a terminal could take amiss."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
