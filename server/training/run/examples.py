"""Turn conversations into tokens, and say which of them count in the loss. Knows no model.

What stands before an answer is what a server sends to ask for it. What counts is the text behind
that, as the chat template writes it, up to the token that ends an answer. So the adapter learns to
stop where answers end, and nothing behind it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.bases.answer_ends import PROBE, AnswerEnds
from server.bases.chats.chat_template import Message, Tools
from server.bases.model import BaseModel
from server.bases.token_ids import unknown_token
from server.bases.tokenizer import ChatTokenizer
from server.errors import InvalidDataset, InvalidRequest, LineProblem
from server.jobs.files.datasets import problem_summary
from server.training.run.prefix_encoder import PrefixEncoder

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


@dataclass(frozen=True)
class LineEncoder:
    """Makes examples of lines that were checked.

    Args:
        max_tokens: that the model can read.
        vocab_size: the model's token ids are below it; a tokenizer may have more.
    """

    tokenizer: ChatTokenizer
    ends: AnswerEnds
    max_tokens: int
    vocab_size: int

    @classmethod
    def of(cls, base: BaseModel, tokenizer: ChatTokenizer) -> "LineEncoder":
        ends = AnswerEnds.of(base, tokenizer)
        return cls(tokenizer.capped(base.max_context), ends, base.max_context, base.vocab_size)

    def examples(self, record: Mapping[str, object]) -> list[Example]:
        """Those of a line: one, several, or none.

        Raises:
            InvalidRequest: the line is too long, or has a token that the model lacks, or the chat
                template refuses it.
        """
        messages, tools = record.get("messages"), record.get("tools")
        if isinstance(messages, Sequence):
            return self._of_chat(messages, tools if isinstance(tools, Sequence) else None)
        return self._of_completion(str(record["prompt"]), str(record["completion"]))

    def _of_completion(self, prompt: str, completion: str) -> list[Example]:
        asked = self.tokenizer.prompt(prompt)
        whole = self.tokenizer.encode(prompt + completion, add_special=True)
        if not prompt:  # what stands for it is no text
            whole = [*asked, *self.tokenizer.encode(completion)]
        answer = self.tokenizer.continuation(asked, whole, completion)
        tokens = self._checked([*asked, *answer, self.ends.end()])
        example = Example.of(tokens, [(len(asked), len(tokens))])
        return [example] if example else []

    def _of_chat(self, messages: Sequence[Message], tools: Tools | None) -> list[Example]:
        """One example if each answer stands behind its prompt in the last turn too. Else each is an
        example of its own: some templates show an answer otherwise once more turns follow.
        """
        unread = {"weight"}
        if not self.tokenizer.reads("reasoning_content"):  # a warning has said so
            unread.add("reasoning_content")
        chat = [{k: v for k, v in message.items() if k not in unread} for message in messages]
        counted = [
            index
            for index, message in enumerate(messages)
            if message["role"] == "assistant" and message.get("weight") != 0
        ]
        # The last first: if that is too long, the others are not read.
        encode = PrefixEncoder(self.tokenizer).encode
        turns = [self._turn(chat[: index + 1], tools, encode) for index in reversed(counted)][::-1]
        if not turns:
            return []
        tokens, _ = turns[-1]
        if all(tokens[: len(turn)] == turn for turn, _ in turns):
            turns, spans = [turns[-1]], [span for _, span in turns]
            found = [Example.of(tokens, spans)]
        else:
            found = [Example.of(turn, [span]) for turn, span in turns]
        return [example for example in found if example]

    def _turn(
        self, chat: Sequence[Message], tools: Tools | None, encode: Callable[[str], list[int]]
    ) -> tuple[list[int], Span]:
        """The prompt for the chat's last message and that message; and where the message stands."""
        asked = self.tokenizer.render(chat[:-1], tools=tools)
        text = self._written(chat, asked, tools)
        whole, prompt = encode(asked + text), encode(asked)
        answer = self.tokenizer.continuation(prompt, whole, text)
        if self.ends.written in answer:
            behind = answer[::-1].index(self.ends.written)
            answer = answer[: len(answer) - behind]
        else:
            text = text.removesuffix(self.ends.closing)
            answer = self.tokenizer.continuation(prompt, encode(asked + text), text)
            if not self.ends.eos.issuperset(answer[-1:]):  # a call of a tool may have its own end
                answer.append(self.ends.end())
        tokens = self._checked([*prompt, *answer])
        return tokens, (len(prompt), len(tokens))

    def _written(self, chat: Sequence[Message], asked: str, tools: Tools | None) -> str:
        """What is to be written behind a prompt: the last message, and what closes it."""
        through = self.tokenizer.render(chat, add_generation_prompt=False, tools=tools)
        if through.startswith(asked):
            return through[len(asked) :]
        # The template asks for an answer in other words than it shows one: find where it begins.
        probe = [*chat[:-1], {"role": "assistant", "content": PROBE}]
        shown = self.tokenizer.render(probe, add_generation_prompt=False, tools=tools)
        header, found, closing = shown.rpartition(PROBE)
        if not found or not through.startswith(header):
            raise InvalidRequest(
                f"the chat template of {self.tokenizer.name} shows message {len(chat) - 1} in a "
                "form in which its beginning cannot be found; leave the line out, or use another "
                "chat template"
            )
        begun = asked.removeprefix(header).strip() if asked.startswith(header) else ""
        content = str(self.tokenizer.marked(chat[-1]).get("content") or "")
        if not begun or not content:
            return through[len(header) :]
        # The prompt has begun the answer, with `<think>` say. The template may hide the thought of
        # an answer; what is asked for is the whole of it, less what the prompt says already.
        return _without(content, begun) + closing

    def _checked(self, tokens: list[int]) -> list[int]:
        """The tokens, if the model can read them. Raises InvalidRequest."""
        if len(tokens) > self.max_tokens:
            raise InvalidRequest(
                f"{len(tokens)} tokens are more than the {self.max_tokens} that the model can "
                "read; shorten or split the conversation"
            )
        wrong = unknown_token(tokens, self.vocab_size)
        if wrong is not None:
            raise InvalidRequest(
                f"has token {wrong} ({self.tokenizer.token_text(wrong)!r}), and this model's token "
                f"ids are 0..{self.vocab_size - 1}: leave that text out, or resize the embedding "
                "of the model to its tokenizer"
            )
        return tokens


def build_examples(
    records: Iterable[tuple[int, Mapping[str, object]]],
    encoder: LineEncoder,
    *,
    param: str = "training_file",
) -> list[list[Example]]:
    """Encode (line number, record) pairs. Each gives a list: one example, several, or none.

    Raises:
        InvalidDataset: naming every line that `encoder` refuses.
    """
    encoded: list[list[Example]] = []
    problems: list[LineProblem] = []
    for line, record in records:
        try:
            encoded.append(encoder.examples(record))
        except InvalidRequest as error:
            problems.append(LineProblem(line, str(error), param))
    if problems:
        raise InvalidDataset(problem_summary(problems), problems, param=param)
    return encoded


def _without(content: str, begun: str) -> str:
    """An answer behind the words that its prompt begins it with."""
    bare = content.lstrip()
    return bare.removeprefix(begun).lstrip("\n") if bare.startswith(begun) else content
