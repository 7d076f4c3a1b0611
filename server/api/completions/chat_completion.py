"""POST /v1/chat/completions: answers a conversation. Knows no text completion."""

import secrets
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import (
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError
from starlette.types import Receive

from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.completions import logprob_format
from server.api.completions.delivery import StreamWaker
from server.api.completions.generation import (
    AnswerLength,
    CheckedRequest,
    check_count,
    in_thread,
)
from server.api.completions.generation_fields import GenerationFields, ranged
from server.api.completions.logprob_format import ShownTokens
from server.api.completions.replies import Transcript, reply
from server.api.model_lookup import find_model, tokenizer_of
from server.api.reference.answer_model import answers, streamed
from server.api.reference.completion_answers import ChatCompletion, ChatCompletionChunk
from server.api.wire import (
    Ignored,
    Null,
    NullOrEmpty,
    NullOrFalse,
    Text,
    WireModel,
    at_most,
    compact,
    only,
    unsupported,
)
from server.engine.sequence import RANGES, check_token_ids
from server.errors import InvalidRequest
from server.interfaces import Tokenizer
from server.scheduler.request import Generation, TextDelta, TokenPiece

router = APIRouter(tags=["completions"])

_MAX_MESSAGES, _MESSAGES_NAMED = 4096, 32
_MAX_TOOLS, _LONGEST_TOOLS = 128, 64 * 1024
_MAX_TEMPLATE_FIELDS, _LONGEST_TEMPLATE_FIELDS = 32, 8 * 1024
_STREAM = 'data: {"choices": [{"index": 0, "delta": {"content": "Arr"}}], ...}\n\ndata: [DONE]\n\n'


class ChatMessage(WireModel):
    """One message. A client may send an answer back; its last fields must be empty then.

    `reasoning_content` is for templates that show earlier reasoning. An `id` changes nothing.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | None = None
    name: Text | None = None
    reasoning_content: Text | None = None
    id: Ignored = None

    refusal: NullOrEmpty = None
    annotations: NullOrEmpty = None
    audio: Null = None
    function_call: Null = None
    provider_specific_fields: NullOrEmpty = None
    reasoning: NullOrEmpty = None
    tool_call_id: NullOrEmpty = None
    tool_calls: NullOrEmpty = None

    def for_template(self) -> dict[str, object]:
        """The message as chat templates expect it."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, object] = {"role": role, "content": self.content or ""}
        if self.name is not None:
            message["name"] = self.name
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        return message

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: object) -> object:
        """Content may be a list of parts; only text is supported."""
        if not isinstance(content, list):
            return content
        return "".join(_text(part) for part in content)


def _text(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise PydanticCustomError(
            "only_text", "has a part that is no text, and only text is supported: leave it out"
        )
    return text


_EVERY_MESSAGE = TypeAdapter(list[ChatMessage])


def _name_every(messages: object, check: ValidatorFunctionWrapHandler) -> object:
    """Name all wrong messages of a short chat. Of a long one the first: there may be thousands."""
    try:
        return check(messages)
    except ValidationError:
        if isinstance(messages, list) and len(messages) <= _MESSAGES_NAMED:
            _EVERY_MESSAGE.validate_python(messages)
        raise


class ChatRequest(GenerationFields):
    """The body. `max_tokens` is the older name of `max_completion_tokens`."""

    messages: Annotated[
        list[ChatMessage],
        FailFast(),
        Field(min_length=1),
        at_most(_MAX_MESSAGES),
        WrapValidator(_name_every),
    ]
    max_completion_tokens: int | None = Field(None, ge=1, le=RANGES["max_tokens"][1])
    max_tokens: int | None = Field(None, ge=1, le=RANGES["max_tokens"][1])
    logprobs: bool | None = None
    top_logprobs: int | None = ranged("top_logprobs")
    tool_choice: Annotated[object, *only("none", "auto")] = None
    tools: Annotated[
        list[dict[str, object]] | None, at_most(_MAX_TOOLS), compact(_LONGEST_TOOLS)
    ] = None
    reasoning_effort: Text | None = Field(None, max_length=64)
    chat_template_kwargs: Annotated[
        dict[Text, object] | None, at_most(_MAX_TEMPLATE_FIELDS), compact(_LONGEST_TEMPLATE_FIELDS)
    ] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    # Fields of plain completions, and what a chat has without them.
    add_special_tokens: NullOrFalse = None
    chat_template: Null = None
    echo: NullOrFalse = None

    @field_validator("max_tokens")
    @classmethod
    def _one_length(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_completion_tokens") not in (None, value):
            raise PydanticCustomError(
                "two_lengths", "is not max_completion_tokens: send one of them"
            )
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs", True):
            raise PydanticCustomError("no_logprobs", "needs logprobs=true: send both")
        return value

    @field_validator("tools")
    @classmethod
    def _not_to_be_called(cls, value: list[object] | None, info: ValidationInfo) -> object:
        if value and info.data.get("tool_choice") != "none":
            raise unsupported('leave it out, or send tool_choice="none"')
        return value

    @field_validator("continue_final_message")
    @classmethod
    def _begins_no_message(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("add_generation_prompt"):
            raise PydanticCustomError(
                "two_ways", "excludes add_generation_prompt=true: send one of them"
            )
        return value

    @property
    def token_limit(self) -> int | None:
        """The answer's largest length, if the request gives one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report per token; None: no log-probabilities at all."""
        return self.top_logprobs or 0 if self.logprobs else None

    def prompt(self, tokenizer: Tokenizer) -> list[int]:
        """The conversation as tokens. Raises InvalidRequest."""
        settings = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort not in (None, "none"):
            if not tokenizer.reads("reasoning_effort"):
                raise InvalidRequest(
                    f"reasoning_effort={self.reasoning_effort!r} is not supported, since the chat "
                    'template does not read it: leave it out, or send "none"',
                    param="reasoning_effort",
                )
            settings.setdefault("reasoning_effort", self.reasoning_effort)
        return tokenizer.chat(
            [message.for_template() for message in self.messages],
            add_generation_prompt=self.add_generation_prompt is not False,
            continues=bool(self.continue_final_message),
            tools=self.tools if tokenizer.reads("tools") else None,
            settings=settings,
        )


class ChatShape:
    """The documents and chunks of chat completions."""

    document_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self.scores = logprobs
        self._shown: dict[int, ShownTokens] = {}  # of the choices that have begun

    def whole(self, choice: int, transcript: Transcript) -> dict[str, object]:
        return {
            "index": choice,
            "message": {"role": "assistant", "content": transcript.text, "refusal": None},
            "logprobs": self._scores(
                ShownTokens().take(
                    transcript.text, transcript.tokens, transcript.finish, transcript.stop_reason
                )
            ),
            "finish_reason": transcript.finish,
            "stop_reason": transcript.stop_reason,
        }

    def chunks(self, choice: int, delta: TextDelta) -> Iterator[dict[str, object]]:
        if choice not in self._shown:
            self._shown[choice] = ShownTokens()
            yield _chunk(choice, {"role": "assistant", "content": "", "refusal": None})
        tokens = self._shown[choice].take(delta.text, delta.tokens, delta.finish, delta.stop_reason)
        if delta.text or (self.scores and tokens):
            yield self.text(choice, delta.text) | {"logprobs": self._scores(tokens)}
        if delta.finish is not None:
            end = {"finish_reason": delta.finish, "stop_reason": delta.stop_reason}
            yield _chunk(choice, {}) | end

    def text(self, choice: int, text: str) -> dict[str, object]:
        return _chunk(choice, {"content": text})

    def _scores(self, tokens: Seq[tuple[int, TokenPiece]]) -> dict[str, object] | None:
        if not self.scores:
            return None
        return logprob_format.for_chat(self._tokenizer, [token for _, token in tokens])


def _chunk(choice: int, delta: dict[str, object]) -> dict[str, object]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}


def check_request(services: Services, owner: str, body: ChatRequest) -> CheckedRequest:
    """Find the model, apply the chat template, check all. Reads the disk and tokenises.

    Raises:
        ModelNotFound, InvalidRequest: naming the field at fault.
    """
    check_count(services, body.choices)
    adapter = find_model(services, owner, body.model)
    prompt = body.prompt(tokenizer_of(services, adapter))
    params = body.sampling(
        AnswerLength.of(services, prompt, body.token_limit, None),
        top_logprobs=body.alternatives,
    )
    check_token_ids(prompt, params, services.base.vocab_size, param="messages")
    generation = Generation(
        request_id=f"chatcmpl-{secrets.token_hex(12)}",
        owner=owner,
        prompt=tuple(prompt),
        params=params,
        adapter=adapter,
        n=body.choices,
        weight=services.limits.of(owner).weight,
        turn_ends=services.base.turn_ends,
        timeout_s=services.request_timeout_s,
        cache_salt=body.cache_salt or "",
        prompt_param="messages",
        length_param="max_tokens" if body.max_tokens else "max_completion_tokens",
    )
    return CheckedRequest.of(services, (generation,), open_ended=body.token_limit is None)


@router.post(
    "/v1/chat/completions",
    responses=streamed(
        answers(ChatCompletion, fails=(404, 429, 504)), ChatCompletionChunk, example=_STREAM
    ),
)
async def create_chat_completion(
    body: ChatRequest, request: Request, services: CurrentServices, owner: CurrentOwner
) -> Response:
    """Answer a conversation."""
    return await answer(services, request.app.state.waker, owner, body, request.receive)


async def answer(
    services: Services, waker: StreamWaker, owner: str, body: ChatRequest, receive: Receive
) -> Response:
    """The answer of `create_chat_completion`."""
    said = [(it.content, it.reasoning_content, it.name) for it in body.messages]
    characters = sum([len(text or "") for texts in said for text in texts])
    checked = await in_thread(services, characters, check_request, services, owner, body)
    shape = ChatShape(services.tokenizer, logprobs=bool(body.logprobs))
    return await reply(services, waker, checked, shape, receive, stream_usage=body.stream_usage)
