"""A base model's tokenizer with its chat template. Knows no tensors and no HTTP."""

import copy
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.bases.base_folder import loadable
from server.bases.default_prompt import DefaultPrompt
from server.bases.detokenizer import IncrementalDecoder, Vocabulary
from server.errors import ContextLengthExceeded, InvalidRequest, UnsupportedModel

Message = Mapping[str, object]
"""One chat message as it came over the wire: `role`, `content`, and whatever the template reads."""

EMBEDDED = {"porch": Path(__file__).parent / "porch"}

Tools = Sequence[Mapping[str, object]]
"""Functions that the model may call, as the OpenAI API describes them."""

_PIECE_CHARACTERS = 32 * 1024
_PIECE_SLACK = 64  # tokens that a cut through a text may add

_TEMPLATE_FAULTS = (
    *(TemplateError, TypeError, ValueError, LookupError),
    *(AttributeError, ArithmeticError),  # a setting of another kind than the template expects
)
_LEADS = ("\n", "\0")  # hardly ever one token with the letter behind them

# For tokenizers that bring no chat template. A line break closes each header, because tokenizers
# cut there: the answer's first token is then the same in training and in serving.
PLAIN_TEMPLATE = """{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Assistant:\\n' + message['content'] + eos + '\\n\\n' -}}
{%- else -%}{{- message['role'].capitalize() + ':\\n' + message['content'] + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}"""


class ChatTokenizer:
    """Text and chats to token ids and back, for any Hugging Face tokenizer.

    A tokenizer without a chat template gets PLAIN_TEMPLATE: `User:` and `Assistant:` headers on
    lines of their own, each answer closed by the end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str = "") -> None:
        self.name = name or str(tokenizer.name_or_path)
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer)
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.special_ids: frozenset[int] = self._vocabulary.special_ids
        self.added_ids = self.special_ids.union(tokenizer.added_tokens_decoder) - {
            tokenizer.unk_token_id
        }
        template = tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("default")
        self.has_chat_template = template is not None
        self._most: int | None = None
        self.has_default_prompt = True  # where the template writes one: `without_default_prompt`
        self._taken = (
            {"self", "messages", "conversations", "eos", "raise_exception", "strftime_now"}
            | signature(tokenizer.apply_chat_template).parameters.keys()
            | tokenizer.special_tokens_map.keys()
        )
        self._template: str = self._plain_template() if template is None else template

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
        if self._default_prompt is None:
            return self
        bare = copy.copy(self)
        bare.has_default_prompt = False
        return bare

    @cached_property
    def _default_prompt(self) -> DefaultPrompt | None:
        mark = self._tokenizer.bos_token or ""
        return DefaultPrompt.of(partial(self.render, add_generation_prompt=False), mark)

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """Token ids of a text; `add_special` adds what the tokenizer itself puts around one."""
        self._check_length(text, "prompt")
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

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and the characters of each; none if the tokenizer cannot tell."""
        if not self._tokenizer.is_fast:
            return self.encode(text), []
        self._check_length(text, "messages")
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def continuation(self, prompt: Sequence[int], whole: Sequence[int], text: str) -> list[int]:
        """Token ids of `text` behind a prompt, which stays as it is.

        Args:
            whole: the tokens of the prompt's text and `text` as one.
        """
        if list(whole[: len(prompt)]) == list(prompt):
            return list(whole[len(prompt) :])
        # A token spans the border: the text is encoded apart. Behind a lead, because some
        # tokenizers put a space in front of a text that stands alone.
        for lead in _LEADS:
            head, ids = self.encode(lead), self.encode(lead + text)
            if ids[: len(head)] == head:
                return ids[len(head) :]
        return self.encode(text)

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
        most = self._most
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

        Args:
            continues: the answer goes on with the last message, which is left open.
            settings: what the template reads besides the chat. Names that it lacks do nothing.

        Raises:
            InvalidRequest: the template refuses the messages, or has no place for tools; or a
                setting has a name that has a meaning of its own. The text says why.
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
        """The text of which `chat` gives the tokens."""
        if not messages:
            raise InvalidRequest("messages is empty: send at least one", param="messages")
        settings = settings or {}
        self._check_settings(settings)
        self._check_tools(messages, tools)
        plain = [_plain_message(index, message) for index, message in enumerate(messages)]
        try:
            text = self._tokenizer.apply_chat_template(
                plain,
                tools=[dict(tool) for tool in tools] if tools else None,
                chat_template=self._template,
                eos=self._tokenizer.eos_token or "",
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continues,
                **settings,
            )
        except _TEMPLATE_FAULTS as error:
            also = " with these chat_template_kwargs" if settings else ""
            raise InvalidRequest(
                f"the chat template of {self.name} refuses these messages{also}: {error}. Change "
                "them as it asks, or use a base model with another template",
                param="messages",
            ) from error
        # With tools, a template writes its own prompt and theirs in one turn.
        stays = self.has_default_prompt or tools or plain[0].get("role") == "system"
        if stays or self._default_prompt is None:
            return str(text)
        return self._default_prompt.left_out(str(text))

    def reads(self, field: str) -> bool:
        """Whether the chat template speaks of a field of messages or requests."""
        return re.search(rf"\b{field}\b", self._template) is not None

    def _check_settings(self, settings: Mapping[str, object]) -> None:
        """Raise InvalidRequest for names that mean something else in a template, or to what renders
        it."""
        taken = [name for name in settings if name in self._taken]
        if taken:
            raise InvalidRequest(
                f"chat_template_kwargs has {', '.join(taken)}, which the server itself gives to "
                "the chat template: leave that out",
                param="chat_template_kwargs",
            )

    def _check_tools(self, messages: Sequence[Message], tools: Tools | None) -> None:
        """Raise InvalidRequest for fields that the template would silently leave out."""
        remedy = "leave them out, or use a base model whose template reads them"
        if tools and not self.reads("tools"):
            raise InvalidRequest(
                f"the chat template of {self.name} has no place for tools: {remedy}", param="tools"
            )
        for name in ("tool_calls", "reasoning_content"):
            if any(message.get(name) for message in messages) and not self.reads(name):
                raise InvalidRequest(
                    f"the chat template of {self.name} has no place for {name}: {remedy}",
                    param="messages",
                )

    def _plain_template(self) -> str:
        """PLAIN_TEMPLATE after the token with which this tokenizer begins a text, if it has one."""
        begin = self._tokenizer.bos_token_id
        begins = begin is not None and self.encode("", add_special=True)[:1] == [begin]
        return ("{{- bos_token -}}" if begins else "") + PLAIN_TEMPLATE


def load_tokenizer(source: str | Path) -> ChatTokenizer:
    """Load the tokenizer of a base model, whose `source` is as in `locate`, or of a
    folder that holds a tokenizer alone.

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
    return ChatTokenizer(tokenizer, name=str(source))


def _plain_message(index: int, message: Message) -> dict[str, Any]:
    """The message as templates expect it: fields without a value left out, text parts joined."""
    plain = {key: value for key, value in message.items() if value is not None}
    content = plain.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        plain["content"] = "".join(_part_text(index, part) for part in content)
    plain.setdefault("content", "")
    return plain


def _part_text(index: int, part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") in ("text", "refusal"):
        text = part.get(str(part["type"]))
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InvalidRequest(
        f"message {index} holds a part of type {kind!r}: this model reads only text",
        param="messages",
    )
