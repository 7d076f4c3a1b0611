"""Turn conversations into tokens, and say which of them count in the loss. Knows no model.

What the assistant wrote counts, with its end-of-turn token, so that the adapter learns to stop. A
chat template may mark those tokens. Where it does not, the chat is rendered up to each answer and
through it, and the answer is the difference.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.bases.tokenizer import ChatTokenizer, Message, Tools
from server.errors import InvalidDataset, InvalidRequest, LineProblem
from server.jobs.files.datasets import problem_summary

Span = tuple[int, int]
"""The places of tokens from the first to the one before the second."""


@dataclass(frozen=True)
class Example:
    """One sequence: `counts[i]` says whether the prediction of `tokens[i]` counts in the loss.

    The last token always counts; the first never does, as nothing stands before it.
    """

    tokens: tuple[int, ...]
    counts: tuple[bool, ...]

    @classmethod
    def of(cls, tokens: Sequence[int], spans: Iterable[Span]) -> "Example | None":
        """Count tokens[start:end] of each span; drop what follows. None if nothing counts."""
        counts = [False] * len(tokens)
        for start, end in spans:
            counts[start:end] = [True] * (end - start)
        counts[:1] = [False] * len(counts[:1])
        if True not in counts:
            return None
        end = len(counts) - counts[::-1].index(True)
        return cls(tuple(tokens[:end]), tuple(counts[:end]))

    @property
    def num_targets(self) -> int:
        return self.counts.count(True)


def build_examples(
    records: Iterable[tuple[int, Mapping[str, object]]],
    tokenizer: ChatTokenizer,
    *,
    max_tokens: int,
    param: str = "training_file",
) -> list[list[Example]]:
    """Encode (line number, record) pairs. Each gives a list: one example, several, or none.

    Raises:
        InvalidDataset: naming every line that the template refuses or that is over `max_tokens`.
    """
    encoded: list[list[Example]] = []
    problems: list[LineProblem] = []
    for line, record in records:
        try:
            examples = encode_record(record, tokenizer)
        except InvalidRequest as error:
            problems.append(LineProblem(line, str(error)))
            continue
        longest = max((len(example.tokens) for example in examples), default=0)
        if longest > max_tokens:
            reason = f"{longest} tokens are more than the {max_tokens} that the model can read"
            problems.append(LineProblem(line, f"{reason}; shorten or split the conversation"))
        encoded.append(examples)
    if problems:
        raise InvalidDataset(problem_summary(problems), problems, param=param)
    return encoded


def encode_record(record: Mapping[str, object], tokenizer: ChatTokenizer) -> list[Example]:
    """The examples of one checked line: a chat (`messages`) or a `prompt` and its `completion`.

    Raises:
        InvalidRequest: the chat template refuses the messages.
    """
    messages, tools = record.get("messages"), record.get("tools")
    if isinstance(messages, Sequence):
        return _chat_examples(messages, tools if isinstance(tools, Sequence) else None, tokenizer)
    return _completion_example(str(record["prompt"]), str(record["completion"]), tokenizer)


def _completion_example(prompt: str, completion: str, tokenizer: ChatTokenizer) -> list[Example]:
    prompt_tokens = tokenizer.encode(prompt, add_special=True)
    whole = tokenizer.encode(prompt + completion, add_special=True)
    if whole[: len(prompt_tokens)] != prompt_tokens:  # a token spans the border: keep the prompt's
        whole = prompt_tokens + tokenizer.encode(completion)
    if tokenizer.eos_token_id is not None:
        whole.append(tokenizer.eos_token_id)
    example = Example.of(whole, [(len(prompt_tokens), len(whole))])
    return [example] if example else []


def _chat_examples(
    messages: Sequence[Message], tools: Tools | None, tokenizer: ChatTokenizer
) -> list[Example]:
    chat = [{k: v for k, v in message.items() if k != "weight"} for message in messages]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    counted = [i for i in answers if messages[i].get("weight") != 0]
    if not counted:
        return []
    marked = tokenizer.chat_mask(chat, tools)
    if marked is not None:
        tokens, mask = marked
        spans = _runs(mask)
        if len(spans) == len(answers):  # else the template omits an answer, or joins two
            ends = [_with_end(tokens, spans[answers.index(i)], tokenizer) for i in counted]
            example = Example.of(tokens, ends)
            return [example] if example else []
    return _by_difference(chat, counted, tools, tokenizer)


def _by_difference(
    chat: Sequence[Message], counted: Sequence[int], tools: Tools | None, tokenizer: ChatTokenizer
) -> list[Example]:
    """Find each answer as what the chat through it has after the prompt that asks for it.

    A template may render an answer differently once more turns follow (some drop its reasoning).
    Then each answer is an example of its own, rendered as the last turn.
    """
    tokens = tokenizer.chat(chat, add_generation_prompt=False, tools=tools)
    turns = [_turn(chat, index, tools, tokenizer) for index in counted]
    if all(tokens[: len(turn)] == turn for turn, _ in turns):
        example = Example.of(tokens, [span for _, span in turns])
        return [example] if example else []
    alone = [Example.of(turn, [span]) for turn, span in turns]
    return [example for example in alone if example]


def _turn(
    chat: Sequence[Message], index: int, tools: Tools | None, tokenizer: ChatTokenizer
) -> tuple[list[int], Span]:
    """The chat through message `index`, and where in it that answer stands."""
    prompt = tokenizer.chat(chat[:index], add_generation_prompt=True, tools=tools) if index else []
    through = tokenizer.chat(chat[: index + 1], add_generation_prompt=False, tools=tools)
    start = _common_length(prompt, through)
    # Only the header's last token may have merged with the answer's first characters.
    if start < len(prompt) - 1:
        raise InvalidRequest(
            f"the chat template of {tokenizer.name} renders message {index} differently from what "
            "it asks the model to write; mark the answers in the template with {% generation %}"
        )
    end = len(through)
    special = [i for i in range(start, end) if through[i] in tokenizer.special_ids]
    return through, (start, special[-1] + 1 if special else end)


def _with_end(tokens: Sequence[int], span: Span, tokenizer: ChatTokenizer) -> Span:
    """A template may end its mark before the end-of-turn token, which must count as well."""
    start, end = span
    closed = tokens[end - 1] in tokenizer.special_ids
    if not closed and end < len(tokens) and tokens[end] in tokenizer.special_ids:
        end += 1
    return start, end


def _runs(mask: Sequence[bool]) -> list[Span]:
    """Start and end of each run of True."""
    neighbours = zip([False, *mask], [*mask, False], strict=True)
    edges = [i for i, (before, after) in enumerate(neighbours) if before != after]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
