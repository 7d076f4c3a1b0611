"""A base model's tokenizer with its chat template. Knows no tensors and no HTTP."""

import copy
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.bases.base_folder import loadable
from server.bases.chats.chat_template import ChatTemplate, Message, Tools
from server.bases.chats.control_texts import MARK, unmarked
from server.bases.detokenizer import IncrementalDecoder, Vocabulary
from server.bases.marked_encoder import MarkedEncoder, Span, control_texts
from server.errors import ContextLengthExceeded, InvalidRequest, UnsupportedModel

EMBEDDED = {"porch": Path(__file__).parent / "porch"}

_PIECE_CHARACTERS = 32 * 1024
_PIECE_SLACK = 64  # tokens that a cut through a text may add

_LEADS = ("\n", "\0")  # hardly ever one token with the letter behind them


class ChatTokenizer:
    """Text and chats to token ids and back, for any Hugging Face tokenizer.

    `ChatTemplate` says how chats become text.

    Args:
        sanitizes: control tokens that people wrote into a chat are text. False: they are the tokens
            that they spell. Other texts are encoded as the tokenizer itself does.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, name: str = "", sanitizes: bool = True
    ) -> None:
        self.name = name or str(tokenizer.name_or_path)
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer)
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.special_ids: frozenset[int] = self._vocabulary.special_ids
        self.added_ids = self.special_ids.union(tokenizer.added_tokens_decoder) - {
            tokenizer.unk_token_id
        }
        self._most: int | None = None
        self._template = ChatTemplate(tokenizer, self.name)
        control = control_texts(tokenizer, self._template.source)
        if sanitizes:
            self._template = self._template.marking(control)
        self._marked_encoder = MarkedEncoder(tokenizer, control) if tokenizer.is_fast else None

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a template of its own."""
        return self._template.was_brought

    @property
    def has_default_prompt(self) -> bool:
        """Whether the template may write a system prompt of its own: `without_default_prompt`."""
        return self._template.has_default_prompt

    def __len__(self) -> int:
        """Number of tokens, special ones included."""
        return len(self._tokenizer)

    def nameless(self, vocab_size: int) -> tuple[int, ...]:
        """The ids below `vocab_size` that name no token: gaps, and what pads the embedding."""
        return self._vocabulary.nameless(vocab_size)

    def capped(self, most: int) -> "ChatTokenizer":
        """The same tokenizer, but texts that surely have more than `most` tokens are refused.

        That is found before all of a text is tokenized, which takes a second for each megabyte. A
        text with a few tokens more may pass. What makes tokens then raises ContextLengthExceeded.
        """
        capped = copy.copy(self)
        capped._most = most
        return capped

    def without_default_prompt(self) -> "ChatTokenizer":
        """The same tokenizer, but a chat that has no system message stands without the one that the
        chat template would write for it. Itself, if the template writes none."""
        template = self._template.without_default_prompt()
        if template is self._template:
            return self
        bare = copy.copy(self)
        bare._template = template
        return bare

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """Token ids of a text; `add_special` adds what the tokenizer itself puts around one. What
        `render` marked as people's stays text."""
        self._check_length(text, "prompt")
        if MARK in text:
            return self._encode_marked(text)[0]
        return list(self._tokenizer.encode(text, add_special_tokens=add_special))

    def pieces(self, text: str) -> list[str] | None:
        """The text as the pieces that the tokens of `prompt(text)` stand for.

        The last of the tokens that are parts of one character has it; tokens that the tokenizer
        adds have no text. None if the tokenizer cannot tell.
        """
        if not self._tokenizer.is_fast:
            return None
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        begins, end = list[int](), 0
        for first, last in encoded["offset_mapping"]:
            # A space in front may be left out, and parts of a character all begin where it does.
            begins.append(min(first, end) if first < last else end)
            end = max(end, last)
        pieces = [text[begin:stop] for begin, stop in pairwise([*begins, len(text)])]
        return pieces or [text]  # of the token that stands for an empty text

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text that the model is to continue. An empty one is the token that begins
        a document, or else the one that ends the document before.

        Raises:
            InvalidRequest: the text is empty, and the tokenizer has neither token.
        """
        ids = self.encode(text, add_special=True)
        begin, end = self._tokenizer.bos_token_id, self.eos_token_id
        start = [token for token in (begin, end) if token is not None]
        if not ids and not start:
            raise InvalidRequest(
                f"the prompt is empty, and {self.name} has no token that begins or ends a text: "
                "give a prompt",
                param="prompt",
            )
        return ids or start[:1]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids of a text, and the characters of each; none if the tokenizer cannot tell."""
        if not self._tokenizer.is_fast:
            return self.encode(text), []
        self._check_length(text, "messages")
        if MARK in text:
            return self._encode_marked(text, spans=True)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def continuation(self, prompt: Sequence[int], whole: Sequence[int], text: str) -> list[int]:
        """Token ids of `text` behind a prompt, which stays as it is.

        Args:
            whole: the tokens of the prompt's text and `text` as one.
        """
        if list(whole[: len(prompt)]) == list(prompt):
            return list(whole[len(prompt) :])
        return self._apart(text)  # a token spans the border

    def _apart(self, text: str) -> list[int]:
        """Token ids of a text that stands behind another. Encoded behind a lead, because some
        tokenizers put a space in front of a text that stands alone."""
        for lead in _LEADS:
            head, ids = self.encode(lead), self.encode(lead + text)
            if ids[: len(head)] == head:
                return ids[len(head) :]
        return self.encode(text)

    def _encode_marked(self, text: str, spans: bool = False) -> tuple[list[int], list[Span]]:
        """As `encode_with_spans`, of a text with marks, and with its spans if they are wanted."""
        encoder = self._marked_encoder
        found = encoder.encode(text) if encoder else None
        if encoder and found:
            ids, named = found
            return ids, encoder.spans(text, named) if spans else []
        # The text is cut at its marks, which are inside the words to be kept from being tokens.
        first, *others = text.split(MARK)
        pieces = [self.encode(first), *(self._apart(piece) for piece in others if piece)]
        return [token_id for piece in pieces for token_id in piece], []

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self._vocabulary.text(list(ids), skip_special=skip_special)

    def stream(self, *, skip_special: bool = True) -> IncrementalDecoder:
        """A decoder for tokens that come one at a time."""
        return IncrementalDecoder(self._vocabulary, skip_special=skip_special)

    def token_text(self, token_id: int) -> str:
        """One token as text, its leading space kept; the part of a character shows as U+FFFD."""
        raw = self._vocabulary.raw(token_id)
        return self._text_inside(token_id) if raw is None else raw.decode(errors="replace")

    def texts_from(self, first: int) -> list[str]:
        """The texts of the tokens whose ids are `first` or more."""
        ids = sorted(set(self._tokenizer.get_vocab().values()))
        return [self.token_text(token_id) for token_id in ids if token_id >= first]

    def token_bytes(self, token_id: int) -> bytes:
        """One token as the bytes that it stands for inside a text."""
        raw = self._vocabulary.raw(token_id)
        return self._text_inside(token_id).encode() if raw is None else raw

    def _check_length(self, text: str, param: str) -> None:
        """Tokenize a long text piece by piece, and raise once there are surely too many tokens."""
        most, text = self._most, unmarked(text) if MARK in text else text
        if most is None or len(text) <= max(most, _PIECE_CHARACTERS):
            return
        tokens = 0
        for start in range(0, len(text), _PIECE_CHARACTERS):
            piece = text[start : start + _PIECE_CHARACTERS]
            tokens += len(self._tokenizer.encode(piece, add_special_tokens=False)) - _PIECE_SLACK
            if tokens > most:
                raise ContextLengthExceeded(
                    f"this model's maximum context length is {most} tokens and the first "
                    f"{start + len(piece)} of {len(text)} characters have more: shorten {param}",
                    param=param,
                )

    def _text_inside(self, token_id: int) -> str:
        """A token's text inside a longer one: decoders strip the space in front of a text, so it is
        what the token adds to a text of the same token."""
        alone = self.decode([token_id], skip_special=False)
        return self.decode([token_id, token_id], skip_special=False)[len(alone) :]

    def chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
        *,
        continues: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a chat; with `add_generation_prompt`, up to where the answer begins.

        Args and errors are those of `ChatTemplate.render`.
        """
        begins = add_generation_prompt and not continues
        text = self.render(messages, begins, tools, continues=continues, settings=settings)
        self._check_length(text, "messages")
        return self.encode(text)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
        *,
        continues: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of which `chat` gives the tokens, with marks for `encode`."""
        return self._template.render(
            messages, add_generation_prompt, tools, continues=continues, settings=settings
        )

    def marked(self, message: Message) -> Message:
        """A message with the marks that `render` gives it."""
        return self._template.marked(message)

    def reads(self, field: str) -> bool:
        """Whether the chat template speaks of a field of messages or requests."""
        return self._template.reads(field)


def load_tokenizer(source: str | Path, *, sanitizes: bool = True) -> ChatTokenizer:
    """Load the tokenizer of a base model, whose `source` is as in `locate`, or of a
    folder that holds a tokenizer alone. `sanitizes` is as in `ChatTokenizer`.

    Raises:
        UnsupportedModel: there is none, or it needs code that this server does not run.
    """
    place = EMBEDDED.get(str(source)) or (source if Path(source).is_dir() else loadable(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its readers and the network raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UnsupportedModel(f"no tokenizer can be loaded from {source}: {reason}") from error
    # The scheduler judges lengths. Without this, transformers would log errors that do not follow.
    tokenizer.model_max_length = sys.maxsize
    return ChatTokenizer(tokenizer, name=str(source), sanitizes=sanitizes)
