"""Questions of a job's file, and their answers before and after training. Knows no queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import whitespace  # ASCII's alone: other spaces are part of a text

from server.bases.answer_ends import AnswerEnds
from server.bases.tokenizer import ChatTokenizer
from server.control_characters import visible_lines
from server.jobs.queue.evaluation import Sample
from server.training.run.examples import Example

MAX_NEW = 48
"""The most tokens of an answer."""
_QUESTIONS = 3
_LONGEST_PROMPT = 1024  # tokens
_REPLACEMENT = "\ufffd"
_SHOWN = 500  # characters of a question


@dataclass(frozen=True)
class Question:
    """A question as text and as the model's prompt, and the file's answer to it. `ends` end one."""

    text: str
    prompt: tuple[int, ...]
    expected: tuple[int, ...]
    ends: frozenset[int]


def questions_of(
    lines: Sequence[tuple[Mapping[str, object], Sequence[Example]]],
    max_context: int,
    ends: AnswerEnds,
) -> tuple[Question, ...]:
    """At most three, spread over the lines, each asking for its line's last answer.

    Args:
        lines: records, each with its examples.
    """
    longest = min(_LONGEST_PROMPT, max_context - MAX_NEW)
    questions: list[Question] = []
    for record, examples in lines:
        for example in examples[-1:]:
            start = _last_answer(example)
            if 0 < start <= longest:
                tokens, stops = example.tokens, ends.all(chat="messages" in record)
                text = _cut(_question(record))
                questions.append(Question(text, tokens[:start], tokens[start:], stops))
    if len(questions) <= _QUESTIONS:
        return tuple(questions)
    last = len(questions) - 1
    return tuple(questions[i * last // (_QUESTIONS - 1)] for i in range(_QUESTIONS))


def sample_of(
    question: Question, base: Sequence[int], adapter: Sequence[int], tokenizer: ChatTokenizer
) -> Sample:
    """A question with three answers to it, given as tokens."""
    answers = question.expected, base, adapter
    texts = [_text(answer, question.ends, tokenizer) for answer in answers]
    return Sample(question.text, *texts)


def _last_answer(example: Example) -> int:
    """Where the last run of counted tokens begins."""
    start = len(example.counts)
    while start and example.counts[start - 1]:
        start -= 1
    return start


def _question(record: Mapping[str, object]) -> str:
    """The last message before the last answer that counts."""
    messages = record.get("messages")
    if not isinstance(messages, Sequence):
        return str(record.get("prompt", ""))
    answers = [
        i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight") != 0
    ]
    before = messages[: answers[-1]] if answers else messages
    contents = [m.get("content") for m in before if m["role"] != "assistant"]
    return _plain(contents[-1]) if contents else ""


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def _text(tokens: Sequence[int], ends: frozenset[int], tokenizer: ChatTokenizer) -> str:
    """An answer without its end token, cut after `MAX_NEW` tokens."""
    shown = tokens[:MAX_NEW]
    ended = len(tokens) <= MAX_NEW and ends.issuperset(tokens[-1:])
    text = visible_lines(tokenizer.decode(shown[:-1] if ended else shown).strip(whitespace))
    if ended or len(tokens) < MAX_NEW:
        return text
    return text.rstrip(_REPLACEMENT) + " ..."  # the last character may be cut


def _cut(text: str) -> str:
    shown = visible_lines(text.strip(whitespace))
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} ..."
