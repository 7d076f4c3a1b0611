"""A base model's chat template: chats as text. Knows no tokens."""

import copy
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from inspect import signature
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from server.bases.chats.control_texts import ControlTexts, unmarked, with_plain_marks
from server.bases.chats.default_prompt import DefaultPrompt
from server.errors import InvalidRequest

Message = Mapping[str, object]
"""One chat message as it came over the wire: `role`, `content`, and whatever the template reads."""

Tools = Sequence[Mapping[str, object]]
"""Functions that the model may call, as the OpenAI API describes them."""

_Plain = list[dict[str, Any]]

_TEMPLATE_FAULTS = (
    *(TemplateError, TypeError, ValueError, LookupError),
    *(AttributeError, ArithmeticError),  # a setting of another kind than the template expects
)
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


class ChatTemplate:
    """The template that a tokenizer brings, as transformers renders it.

    A tokenizer without one gets PLAIN_TEMPLATE: `User:` and `Assistant:` headers on lines of their
    own, each answer closed by the end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._name = name
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("default")
        self.was_brought = template is not None
        self.has_default_prompt = True  # where the template writes one: `without_default_prompt`
        self._taken = (
            {"self", "messages", "conversations", "eos", "raise_exception", "strftime_now"}
            | signature(tokenizer.apply_chat_template).parameters.keys()
            | tokenizer.special_tokens_map.keys()
        )
        self.source: str = _plain_template(tokenizer) if template is None else template
        self._control: ControlTexts | None = None

    def marking(self, control: ControlTexts) -> "ChatTemplate":
        """The same template, but in the text of a chat the control tokens that are not the
        template's own have marks."""
        marking = copy.copy(self)
        marking._control = control
        return marking

    def without_default_prompt(self) -> "ChatTemplate":
        """The same template, but a chat that has no system message stands without the one that the
        template would write for it. Itself, if it writes none."""
        if self._default_prompt is None:
            return self
        bare = copy.copy(self)
        bare.has_default_prompt = False
        return bare

    @cached_property
    def _default_prompt(self) -> DefaultPrompt | None:
        mark = self._tokenizer.bos_token or ""
        return DefaultPrompt.of(partial(self.render, add_generation_prompt=False), mark)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
        *,
        continues: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a chat; with `add_generation_prompt`, up to where the answer begins.

        Args:
            continues: the answer goes on with the last message, which is left open.
            settings: what the template reads besides the chat. Names that it lacks do nothing.

        Raises:
            InvalidRequest: the template refuses the messages, or has no place for tools; or a
                setting has a name that has a meaning of its own. The text says why.
        """
        if not messages:
            raise InvalidRequest("messages is empty: send at least one", param="messages")
        settings = settings or {}
        self._check_settings(settings)
        self._check_tools(messages, tools)
        plain = [_plain_message(index, message) for index, message in enumerate(messages)]
        given = plain, list(tools) if tools else None, dict(settings)
        marked = self._marked(*given)
        text = self._written(*marked, begins=add_generation_prompt, continues=continues)
        if marked != given:
            text = with_plain_marks(text, str(given))
        # With tools, a template writes its own prompt and theirs in one turn.
        stays = self.has_default_prompt or tools or plain[0].get("role") == "system"
        if stays or self._default_prompt is None:
            return text
        return self._default_prompt.left_out(text)

    def _marked(self, messages: _Plain, tools: Any, settings: Any) -> tuple[_Plain, Any, Any]:
        """What is given to the template, with marks where the template is to mark."""
        control = self._control
        if control is None:
            return messages, tools, settings
        marked = [self.marked(message) for message in messages]
        return marked, control.marked(tools), control.marked(settings)

    def marked(self, message: Message) -> dict[str, Any]:
        """A message with the marks that `render` gives it."""
        if self._control is None:
            return dict(message)
        marked: dict[str, Any] = self._control.marked(message)
        if message.get("role") == "assistant" and marked.get("content") != message.get("content"):
            marked["content"] = self._in_answers.marked(message["content"])
        return marked

    @cached_property
    def _in_answers(self) -> ControlTexts:
        """The control tokens that are text in an answer: not `<think>` and `</think>`, where the
        template writes them in front of an answer, or takes the thought out of one."""
        assert self._control is not None
        frames = (self._tokenizer.bos_token, self._tokenizer.eos_token)
        texts = frozenset(text for text in self._control.texts if text not in frames)
        pairs = [(end.replace("/", "", 1), end) for end in texts if end[1:2] == "/"]
        thoughts = [it for it in pairs if texts.issuperset(it) and self._tells_thoughts(*it)]
        return self._control.without(text for pair in thoughts for text in pair)

    def _tells_thoughts(self, begin: str, end: str) -> bool:
        asked = {"role": "user", "content": "Question"}
        plain, thought = "Zebra7 Yak7", f"Zebra7{end}Yak7"

        def told(answer: str) -> tuple[str, str]:
            chat = [asked, {"role": "assistant", "content": answer}]
            last = self._written(chat, None, {}, begins=False)
            return last, self._written([*chat, asked], None, {}, begins=False)

        try:
            silent = self._written([asked], None, {}, begins=False)
            prompt = self._written([asked], None, {}, begins=True)
            shown, changed = told(plain), told(thought)
        except InvalidRequest:
            return False
        behind = "".join(text.partition(plain)[2] for text in shown)
        if begin in behind or end in behind or any(plain not in text for text in shown):
            return False  # it frames an answer or the next question, or cannot be told
        asks = prompt.removeprefix(silent) if prompt.startswith(silent) else ""
        return begin in asks or end in asks or any(thought not in text for text in changed)

    def _written(
        self,
        messages: _Plain,
        tools: Any,
        settings: Mapping[str, Any],
        *,
        begins: bool,
        continues: bool = False,
    ) -> str:
        """What the template writes. Raises InvalidRequest."""
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self.source,
                eos=self._tokenizer.eos_token or "",
                tokenize=False,
                add_generation_prompt=begins,
                continue_final_message=continues,
                **settings,
            )
        except _TEMPLATE_FAULTS as error:
            also = " with these chat_template_kwargs" if settings else ""
            reason = unmarked(with_plain_marks(str(error), given=""))
            raise InvalidRequest(
                f"the chat template of {self._name} refuses these messages{also}: {reason}. Change "
                "them as it asks, or use a base model with another template",
                param="messages",
            ) from error
        return str(text)

    def reads(self, field: str) -> bool:
        """Whether the chat template speaks of a field of messages or requests."""
        return re.search(rf"\b{field}\b", self.source) is not None

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
                f"the chat template of {self._name} has no place for tools: {remedy}", param="tools"
            )
        for name in ("tool_calls", "reasoning_content"):
            if any(message.get(name) for message in messages) and not self.reads(name):
                raise InvalidRequest(
                    f"the chat template of {self._name} has no place for {name}: {remedy}",
                    param="messages",
                )


def _plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """PLAIN_TEMPLATE after the token with which the tokenizer begins a text, if it has one."""
    begin = tokenizer.bos_token_id
    begins = begin is not None and tokenizer.encode("", add_special_tokens=True)[:1] == [begin]
    return ("{{- bos_token -}}" if begins else "") + PLAIN_TEMPLATE


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
