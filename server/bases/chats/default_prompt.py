"""The system prompt that some chat templates write in front of a chat that has none.

Adapters are trained and asked without it: see decision 21. Knows no tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.errors import InvalidRequest

_SYSTEM = {"role": "system", "content": "Zebra7"}
_QUESTION = {"role": "user", "content": "Question"}
_ANSWER = {"role": "assistant", "content": "Answer"}


@dataclass(frozen=True)
class DefaultPrompt:
    """`begins` is the mark that begins a text, if the template writes one; `turn` the system turn
    behind it."""

    begins: str
    turn: str

    @classmethod
    def of(
        cls, render: Callable[[Sequence[Mapping[str, object]]], str], mark: str
    ) -> "DefaultPrompt | None":
        """Ask a chat template. None: it writes no such turn.

        A turn is known by its frame: what the template writes around a system message, and then a
        question as it would be written later on. What a template merges into the question stays.

        Args:
            render: the text of a chat, with nothing that asks for an answer.
            mark: what begins a text of the tokenizer; empty if nothing does.
        """
        pair = [_QUESTION, _ANSWER]
        try:
            plain, stated = render([_QUESTION]), render([_SYSTEM, _QUESTION])
            question = render([*pair, _QUESTION]).removeprefix(render(pair))
        except InvalidRequest:
            return None
        opened, found, closed = stated.partition(_SYSTEM["content"])
        framed = found and plain.startswith(opened) and plain.endswith(closed)
        if not framed or not closed.endswith(question) or len(plain) <= len(opened + closed):
            return None
        # Where the mark begins every turn, it begins the text by itself only if it stands twice.
        alone = mark if question.startswith(mark) else ""
        begins = mark if opened.startswith(mark + alone) else ""
        return cls(begins, plain[len(begins) : len(plain) - len(question)])

    def left_out(self, text: str) -> str:
        """`text`, which a template wrote, without the turn."""
        opening = self.begins + self.turn
        return self.begins + text[len(opening) :] if text.startswith(opening) else text
