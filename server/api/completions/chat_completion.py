"""POST /v1/chat/completions: answers a conversation. Knows no text completion."""

import secrets
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import FailFast, Field, field_validator
from pydantic_core import PydanticCustomError
from starlette.types import Receive

from server.api.app_services import CurrentOwner, CurrentServices, Services
from server.api.completions import logprob_format
from server.api.completions.delivery import StreamWaker
from server.api.completions.generation import CheckedRequest, context_left
from server.api.completions.generation_fields import GenerationFields
from server.api.completions.logprob_format import ShownTokens
from server.api.completions.replies import Transcript, reply
from server.api.model_lookup import find_model
from server.api.wire import Text, WireModel, at_most
from server.engine.sequence import check_token_ids
from server.errors import InvalidRequest
from server.interfaces import Tokenizer
from server.scheduler.request import Generation, TextDelta, TokenPiece

router = APIRouter(tags=["completions"])

_MAX_MESSAGES = 4096


class ChatMessage(WireModel):
    """One message. A client may send an answer back; its last five fields must be empty then."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | None = None
    name: Text | None = None

    refusal: None = None
    annotations: list[None] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: list[None] | None = Field(None, max_length=0)

    def for_template(self) -> dict[str, object]:
        """The message as chat templates expect it."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, object] = {"role": role, "content": self.content or ""}
        return message if self.name is None else message | {"name": self.name}

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
        raise PydanticCustomError("only_text", "only parts of type 'text' are supported")
    return text


class ChatRequest(GenerationFields):
    """The body. `max_tokens` is the older name of `max_completion_tokens`."""

    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1), at_most(_MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def token_limit(self) -> int | None:
        """The answer's largest length, if the request gives one."""
        limits = {self.max_completion_tokens, self.max_tokens} - {None}
        if len(limits) > 1:
            message = "max_tokens and max_completion_tokens differ: send one of them"
            raise InvalidRequest(message, param="max_tokens")
        return limits.pop() if limits else None

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report per token; None: no log-probabilities at all."""
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs needs logprobs=true: send both"
            raise InvalidRequest(message, param="top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None


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
    adapter = find_model(services, owner, body.model)
    prompt = services.tokenizer.chat([message.for_template() for message in body.messages])
    params = body.sampling(
        max_tokens=body.token_limit or context_left(services, prompt),
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
        turn_ends=services.base.turn_ends,
        timeout_s=services.request_timeout_s,
        prompt_param="messages",
        length_param="max_tokens" if body.max_tokens else "max_completion_tokens",
    )
    return CheckedRequest.of(services, (generation,))


@router.post("/v1/chat/completions")
async def create_chat_completion(
    body: ChatRequest, request: Request, services: CurrentServices, owner: CurrentOwner
) -> Response:
    """Answer a conversation."""
    return await answer(services, request.app.state.waker, owner, body, request.receive)


async def answer(
    services: Services, waker: StreamWaker, owner: str, body: ChatRequest, receive: Receive
) -> Response:
    """The answer of `create_chat_completion`."""
    checked = await services.threads.answering.run(check_request, services, owner, body)
    shape = ChatShape(services.tokenizer, logprobs=bool(body.logprobs))
    return await reply(services, waker, checked, shape, receive, usage_chunk=body.usage_chunk)
