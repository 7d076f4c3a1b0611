"""POST /v1/completions: continues one text or several. Knows no chat template."""

import secrets
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Annotated, cast

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, PlainValidator
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
from server.api.model_lookup import find_model
from server.api.reference.answer_model import answers, streamed
from server.api.reference.completion_answers import Completion
from server.api.wire import Null, NullOrEmpty, NullOrTrue, encodable, only
from server.engine.sequence import TokenLogprob, check_token_ids
from server.errors import InvalidRequest
from server.interfaces import Tokenizer
from server.scheduler.request import Generation, TextDelta, TokenPiece

router = APIRouter(tags=["completions"])

_DEFAULT_MAX_TOKENS = 16  # the OpenAI API's
_MAX_PROMPTS = 1024
_STREAM = 'data: {"choices": [{"index": 0, "text": "Arr"}], ...}\n\ndata: [DONE]\n\n'

Scored = tuple[int, int, TokenLogprob | None]
"""Where a token begins in a choice's text, its id and its score."""


def _checked_prompt(value: object) -> object:
    """Check each item once and stop at the first wrong one: `server.api.wire` says why."""
    items = value if isinstance(value, list) else [value]
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    if len(items) > _MAX_PROMPTS:
        raise PydanticCustomError(
            "too_many", "has more than {count} prompts: give fewer", {"count": _MAX_PROMPTS}
        )
    kind = type(items[0])
    if kind in (str, list) and all(type(item) is kind and _is_prompt(item) for item in items):
        return value
    raise PydanticCustomError(
        "prompt", "is not text, a list of token ids, or a list of either: give one of them"
    )


def _is_prompt(item: str | list[object]) -> bool:
    if isinstance(item, str):
        encodable(item)
        return True
    return all(type(token_id) is int for token_id in item)


def _false_is_none(value: object) -> object:
    return None if value is False else value


class CompletionRequest(GenerationFields):
    """The body. A prompt is text or token ids; `prompt` holds one of them or a list."""

    prompt: Annotated[
        str | list[str] | list[int] | list[list[int]], PlainValidator(_checked_prompt)
    ]
    max_tokens: int | None = ranged("max_tokens")
    echo: bool | None = None
    logprobs: Annotated[int | None, BeforeValidator(_false_is_none)] = ranged("top_logprobs")

    # Fields of chats, and what a text has without them.
    add_special_tokens: NullOrTrue = None
    chat_template_kwargs: NullOrEmpty = None
    reasoning_effort: Annotated[object, *only("none")] = None
    tool_choice: Annotated[object, *only("none", "auto")] = None
    tools: NullOrEmpty = None
    top_logprobs: Null = None

    @property
    def holds_token_ids(self) -> bool:
        """Whether the prompt is one, as token ids."""
        return isinstance(self.prompt, list) and isinstance(next(iter(self.prompt), None), int)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidRequest("prompt is an empty list; send at least one", param="prompt")
        if self.holds_token_ids:
            return [cast(list[int], self.prompt)]
        return cast(list[str | list[int]], self.prompt)


@dataclass(frozen=True)
class Echo:
    """A prompt that is shown before its answer: the ids of its tokens and the text of each."""

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]

    @cached_property
    def text(self) -> str:
        return "".join(self.pieces)

    def before(self, tokens: Seq[tuple[int, TokenPiece]]) -> list[Scored]:
        """These tokens of the answer, placed behind the prompt."""
        start = len(self.text)
        return [(start + at, token.token_id, token.logprob) for at, token in tokens]

    def scored(self, scores: Seq[TokenLogprob | None] | None) -> list[Scored]:
        """The tokens with their scores; None for each where there are none."""
        known = scores or (None,) * len(self.token_ids)
        begins = accumulate(map(len, self.pieces), initial=0)  # and the end of all
        return list(zip(begins, self.token_ids, known, strict=False))


_NO_ECHO = Echo((), ())


class CompletionShape:
    """The documents and chunks of text completions, which have one form.

    Args:
        echoes: the prompts to show before their `n` answers each; empty: none is shown.
    """

    document_kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(
        self, tokenizer: Tokenizer, *, logprobs: bool, echoes: Seq[Echo] = (), n: int = 1
    ) -> None:
        self._tokenizer = tokenizer
        self.scores = logprobs
        self._echoes = echoes
        self._n = n
        self._shown: dict[int, ShownTokens] = {}  # of the choices that have begun

    def whole(self, choice: int, transcript: Transcript) -> dict[str, object]:
        echo = self._echo(choice)
        shown = ShownTokens().take(
            transcript.text, transcript.tokens, transcript.finish, transcript.stop_reason
        )
        tokens = echo.scored(transcript.prompt_logprobs) + echo.before(shown)
        return {
            "index": choice,
            "text": echo.text + transcript.text,
            "logprobs": self._scores(tokens),
            "finish_reason": transcript.finish,
            "stop_reason": transcript.stop_reason,
        }

    def chunks(self, choice: int, delta: TextDelta) -> Iterator[dict[str, object]]:
        text, echo = delta.text, self._echo(choice)
        begun = choice in self._shown
        shown = self._shown.setdefault(choice, ShownTokens())
        tokens = echo.before(shown.take(text, delta.tokens, delta.finish, delta.stop_reason))
        if not begun:
            text, tokens = echo.text + text, echo.scored(delta.prompt_logprobs) + tokens
        if not (text or delta.finish or (self.scores and tokens)):
            return
        yield self.text(choice, text) | {
            "logprobs": self._scores(tokens),
            "finish_reason": delta.finish,
            "stop_reason": delta.stop_reason,
        }

    def text(self, choice: int, text: str) -> dict[str, object]:
        return {
            "index": choice,
            "text": text,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
        }

    def _echo(self, choice: int) -> Echo:
        return self._echoes[choice // self._n] if self._echoes else _NO_ECHO

    def _scores(self, tokens: Seq[Scored]) -> dict[str, object] | None:
        return logprob_format.for_completion(self._tokenizer, tokens) if self.scores else None


def _echo(tokenizer: Tokenizer, text: str | None, prompt: tuple[int, ...]) -> Echo:
    """A prompt that was sent as text is shown as it was sent: tokens that the tokenizer put around
    it have no text. One that was sent as ids (None) is shown with its special tokens.
    """
    pieces = None if text is None else tokenizer.pieces(text)
    if pieces is None:
        decoder = tokenizer.stream(skip_special=False)
        pieces = [decoder.push(token_id) for token_id in prompt]
        pieces[-1] += decoder.flush()
    return Echo(prompt, tuple(pieces))


def check_request(services: Services, owner: str, body: CompletionRequest) -> CheckedRequest:
    """Find the model, tokenise, check all. Reads the disk."""
    prompts = body.prompts
    check_count(services, len(prompts) * body.choices)
    adapter = find_model(services, owner, body.model)
    request_id = f"cmpl-{secrets.token_hex(12)}"
    generations = []
    for item in prompts:
        prompt = services.tokenizer.prompt(item) if isinstance(item, str) else item
        params = body.sampling(
            AnswerLength.of(services, prompt, body.max_tokens, _DEFAULT_MAX_TOKENS),
            top_logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        )
        check_token_ids(prompt, params, services.base.vocab_size)
        generation = Generation(
            request_id=request_id,
            owner=owner,
            prompt=tuple(prompt),
            params=params,
            adapter=adapter,
            n=body.choices,
            weight=services.limits.of(owner).weight,
            timeout_s=services.request_timeout_s,
            cache_salt=body.cache_salt or "",
        )
        generations.append(generation)
    return CheckedRequest.of(services, generations)


def _checked_and_shape(
    services: Services, owner: str, body: CompletionRequest
) -> tuple[CheckedRequest, CompletionShape]:
    checked = check_request(services, owner, body)
    shape = CompletionShape(
        services.tokenizer,
        logprobs=body.logprobs is not None,
        echoes=_echoes(services, body, checked) if body.echo else (),
        n=body.choices,
    )
    return checked, shape


def _echoes(services: Services, body: CompletionRequest, checked: CheckedRequest) -> list[Echo]:
    most = services.engine.max_context  # the engine refuses a longer prompt: do not decode it
    return [
        _echo(services.tokenizer, item if isinstance(item, str) else None, generation.prompt)
        if len(generation.prompt) <= most
        else _NO_ECHO
        for item, generation in zip(body.prompts, checked.generations, strict=True)
    ]


@router.post(
    "/v1/completions",
    responses=streamed(answers(Completion, fails=(404, 429, 504)), Completion, example=_STREAM),
)
async def create_completion(
    body: CompletionRequest, request: Request, services: CurrentServices, owner: CurrentOwner
) -> Response:
    """Continue a text, or several."""
    return await answer(services, request.app.state.waker, owner, body, request.receive)


async def answer(
    services: Services, waker: StreamWaker, owner: str, body: CompletionRequest, receive: Receive
) -> Response:
    """The answer of `create_completion`."""
    if body.model == services.base.id and body.echo is None and body.holds_token_ids:
        # Neither disk nor tokenizer: a thread would cost more than this takes.
        checked, shape = _checked_and_shape(services, owner, body)
    else:
        characters = sum([len(item) for item in body.prompts])
        checked, shape = await in_thread(
            services, characters, _checked_and_shape, services, owner, body
        )
    return await reply(services, waker, checked, shape, receive, stream_usage=body.stream_usage)
