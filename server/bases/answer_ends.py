"""Where an answer ends: decided here, once, for serving, for training and for its evaluation.

A base model names its end tokens in up to four places: its tokenizer, its configuration, its
generation configuration, and the text that its chat template writes behind an answer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from server.bases.model import BaseModel
from server.bases.tokenizer import ChatTokenizer
from server.errors import InvalidRequest

PROBE = "Zebra7"
"""An answer that no template changes and no template contains."""

_SYSTEM = {"role": "system", "content": "System"}
_QUESTION = {"role": "user", "content": "Question"}
_ANSWER = {"role": "assistant", "content": PROBE}


@dataclass(frozen=True)
class AnswerEnds:
    """The tokens that end answers.

    Attributes:
        eos: end every answer: those of the tokenizer, the configuration and the generation
            configuration.
        turn: end the answers of chats too: what the chat template closes them with.
        closing: the text that the template writes behind an answer at the end of a chat.
        written: the token in `closing` that ends the answer. None: there is none.
        taught: the token that training adds where a line brings none. None: the base has none.
    """

    eos: frozenset[int]
    turn: frozenset[int]
    closing: str
    written: int | None
    taught: int | None
    tokenizer: ChatTokenizer

    @classmethod
    def of(cls, base: BaseModel, tokenizer: ChatTokenizer) -> "AnswerEnds":
        """Ask the base, the tokenizer and the chat template. A template that refuses a question
        with its answer closes nothing.
        """
        own = tokenizer.eos_token_id
        known = own is not None and own < base.vocab_size  # else the model cannot write it
        eos = base.eos_token_ids | {own} if own is not None and known else base.eos_token_ids
        closing = _behind_answer(tokenizer, following=False)
        written = _end_in(closing, tokenizer, eos)
        # A template may close only what another turn follows, perhaps with the mark of that turn.
        turn = _end_in(_behind_answer(tokenizer), tokenizer, eos) if written is None else written
        return cls(
            eos=eos,
            turn=frozenset() if turn is None else frozenset([turn]),
            closing=closing,
            written=written,
            taught=own if known else min(eos, default=None),
            tokenizer=tokenizer,
        )

    def all(self, *, chat: bool) -> frozenset[int]:
        """The tokens that end an answer to a chat, or to a plain prompt."""
        return self.eos | self.turn if chat else self.eos

    def end(self) -> int:
        """The token that training adds to an answer. Raises InvalidRequest if there is none."""
        if self.taught is None:
            raise InvalidRequest(
                f"neither the tokenizer nor the configuration of {self.tokenizer.name} names an "
                "end token, so an adapter could not learn where to stop: give the tokenizer an "
                "eos_token"
            )
        return self.taught

    def warnings(self, *, chat: bool) -> Iterable[str]:
        """What a user should know before training on chats, or on prompts with completions."""
        if not chat or self.written is not None or self.taught is None:
            return
        closing = f"with {self.closing!r}" if self.closing else "with nothing"
        added = self.tokenizer.token_text(self.taught)
        yield (
            f"the chat template of {self.tokenizer.name} closes an answer {closing}, where no "
            f"token tells the model to stop: training adds {added!r} behind each answer, and "
            "answers end there"
        )


def _behind_answer(tokenizer: ChatTokenizer, *, following: bool = True) -> str:
    """What the template writes between an answer and the next question, or the chat's end."""
    chat = [_QUESTION, _ANSWER, _QUESTION] if following else [_QUESTION, _ANSWER]
    for opening in ([], [_SYSTEM]):  # some templates refuse a chat with a system turn, or without
        try:
            text = tokenizer.render([*opening, *chat], add_generation_prompt=False)
        except InvalidRequest:
            continue
        behind = text.partition(PROBE)[2]
        return behind.rpartition(_QUESTION["content"])[0] if following else behind
    return ""


def _end_in(text: str, tokenizer: ChatTokenizer, eos: frozenset[int]) -> int | None:
    """The token in a closing text that ends the answer: a known end, else the first that was added
    to the vocabulary for such a purpose. Plain text is none, because answers may contain it. Some
    vocabularies were given line breaks and runs of spaces: these are plain text too.
    """
    ids = tokenizer.encode(text)
    added = [i for i in ids if i in tokenizer.added_ids and tokenizer.token_text(i).strip()]
    return next(iter([*(i for i in ids if i in eos), *added]), None)
