"""Submits a request to the engine and answers over HTTP, as one document or as a stream.

The two kinds of completion differ only in their `Shape`.
"""

import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.types import Receive

from adapters_store.store_errors import StoreError
from server.api.app_services import Services
from server.api.completions.delivery import Answers, ChoiceUpdate, ClientGone, StreamWaker
from server.api.completions.generation import CheckedRequest, StreamUsage, usage
from server.api.sse import DONE, AnswerStream, event
from server.db.audit_trail import acting
from server.engine.sequence import FinishReason, TokenLogprob
from server.errors import QueueFull, RateLimited, Unavailable, VerandahError
from server.scheduler.request import TextDelta, TokenPiece
from server.tenancy.limits.request_limits import TURN, Turn
from server.tenancy.usage.usage_counts import Meter

log = logging.getLogger(__name__)

_stepwise = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_CLIENT_CLOSED_REQUEST = 499  # nginx's status, for the log: nobody reads it


@dataclass
class Transcript:
    """One whole answer."""

    text: str = ""
    num_tokens: int = 0
    tokens: list[TokenPiece] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, update: ChoiceUpdate) -> None:
        """Append an update of this answer."""
        delta = update.delta
        self.text += delta.text
        self.num_tokens += update.num_tokens
        self.tokens.extend(delta.tokens)
        self.prompt_logprobs = self.prompt_logprobs or delta.prompt_logprobs
        self.finish = delta.finish
        self.stop_reason = delta.stop_reason


class Shape(Protocol):
    """The JSON of one kind of answer. A `choice` is an answer's index within the request."""

    document_kind: str
    chunk_kind: str

    @property
    def scores(self) -> bool:
        """Whether chunks have log-probabilities."""

    def whole(self, choice: int, transcript: Transcript) -> Mapping[str, object]:
        """A choice of the document."""

    def chunks(self, choice: int, delta: TextDelta) -> Iterator[Mapping[str, object]]:
        """The choices of one delta's chunks, in order."""

    def text(self, choice: int, text: str) -> Mapping[str, object]:
        """The choice of a chunk with text alone, as `chunks` makes it."""


async def reply(
    services: Services,
    waker: StreamWaker,
    request: CheckedRequest,
    shape: Shape,
    receive: Receive,
    *,
    stream_usage: StreamUsage | None,
) -> Response:
    """Run a checked request and answer it.

    Args:
        receive: the request's, whose body was read; it now tells when the client goes away.
        stream_usage: None: one document. Else a stream. With usage, it has a last chunk for that.

    Raises:
        Exception: the engine refused the request, or failed before the first token: the response
            can still have the error's status. Later failures are an event in the stream.
    """
    turn = TURN.get()
    if turn is not None:
        await _reserve(services, turn, request)
    answers = Answers(
        services.engine,
        waker,
        receive,
        ends_only=stream_usage is None,
        timeout_s=services.request_timeout_s,
    )
    handed_on = False
    meter: Meter | None = None

    def close() -> None:
        answers.close()
        if meter is not None:
            meter.completion += answers.unread_tokens
            services.usage.end(meter)

    try:
        _submit(services, answers, request)
        meter = services.usage.begin(acting(), request.counted_model, request.prompt_tokens)
        if turn is not None:
            turn.spent = partial(_spent, meter, request)
        if stream_usage is None:
            return await _document(answers, meter, request, shape)
        first = await answers.next()
        events = _events(services, answers, meter, first, request, shape, stream_usage)
        handed_on = True
        return AnswerStream(events, on_end=close)
    except ClientGone:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    finally:
        if not handed_on:
            close()


def _spent(meter: Meter, request: CheckedRequest) -> int:
    return request.prompt_tokens + meter.completion


async def _reserve(services: Services, turn: Turn, request: CheckedRequest) -> None:
    try:
        await turn.reserve(
            request.prompt_tokens, request.most_answer_tokens, open_ended=request.open_ended
        )
    except RateLimited:
        services.metrics.rejected("rate_limit")
        raise


def _submit(services: Services, answers: Answers, request: CheckedRequest) -> None:
    try:
        for generation in request.generations:
            answers.submit(generation)
    except (QueueFull, Unavailable) as error:
        queue_full = isinstance(error, QueueFull)
        services.metrics.rejected("queue_full" if queue_full else "unavailable")
        raise


def _many_scores(batch: Seq[ChoiceUpdate]) -> bool:
    return sum(len(it.delta.tokens) + len(it.delta.prompt_logprobs or ()) for it in batch) > 64


def _count(meter: Meter, batch: Seq[ChoiceUpdate]) -> None:
    """Count the tokens of a batch as they come, so that a crash loses few. Those that were cached
    are of each prompt's first answer alone: the others reuse what that one computed."""
    meter.completion += sum([update.num_tokens for update in batch])
    meter.cached += sum([delta.cached_tokens for _, delta, _ in batch if delta.index == 0])


async def _document(
    answers: Answers, meter: Meter, request: CheckedRequest, shape: Shape
) -> Response:
    transcripts: dict[int, Transcript] = defaultdict(Transcript)
    while not answers.complete:
        batch = await answers.next()
        _count(meter, batch)
        for update in batch:
            transcripts[update.choice].add(update)
    counts = usage(request.prompt_tokens, meter.completion, meter.cached)

    def document() -> dict[str, object]:
        return {
            **request.labels(shape.document_kind),
            "choices": [shape.whole(choice, transcripts[choice]) for choice in sorted(transcripts)],
            "usage": counts,
        }

    if not shape.scores:
        return JSONResponse(document())
    # There may be a million scores, and C's encoder would hold the interpreter's lock for them all.
    content = await run_in_threadpool(lambda: "".join(_stepwise.iterencode(document())))
    return Response(content, media_type="application/json")


async def _events(
    services: Services,
    answers: Answers,
    meter: Meter,
    batch: Seq[ChoiceUpdate],
    request: CheckedRequest,
    shape: Shape,
    stream_usage: StreamUsage,
) -> AsyncIterator[tuple[bytes, bool]]:
    """See `AnswerStream`."""
    labels = request.labels(shape.chunk_kind)
    if stream_usage is StreamUsage.LAST:
        labels["usage"] = None
    counted = request.usage_so_far if stream_usage is StreamUsage.EVERY else None
    chunks = Chunks(labels, shape, counted)
    try:
        while True:
            _count(meter, batch)
            if shape.scores and _many_scores(batch):
                events = await run_in_threadpool(chunks.of, batch)
            else:
                events = chunks.of(batch)
            if answers.complete:
                break
            if events:
                yield events, True
            batch = await answers.next()
    except ClientGone:
        yield b"", False
        return
    except Exception as error:  # the status was sent: the error is an event
        if not isinstance(error, VerandahError | StoreError):
            log.exception("answer %s failed", request.id)
        yield event(services.describe(error).body(), name="error"), False
        return
    if stream_usage is not StreamUsage.NONE:
        counts = usage(request.prompt_tokens, meter.completion, meter.cached)
        events += event({**labels, "choices": [], "usage": counts})
    yield events + DONE, False


_TEXT = "\0"
_ENCODED_TEXT = json.dumps(_TEXT).encode()
_encoded = json.encoder.encode_basestring  # a text as `event` writes it


class Chunks:
    """The chunks of one stream, as events.

    Nearly all hold text and nothing else: of those, all but the text is made once for each choice.

    Args:
        counted: makes the `usage` in each chunk, of a choice and how many tokens it has. None:
            chunks have none.
    """

    def __init__(
        self,
        labels: Mapping[str, object],
        shape: Shape,
        counted: Callable[[int, int], Mapping[str, object]] | None = None,
    ) -> None:
        self._labels = dict(labels)
        self._shape = shape
        self._counted = counted
        self._num_tokens: dict[int, int] = defaultdict(int)  # of each choice
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def of(self, batch: Seq[ChoiceUpdate]) -> bytes:
        """The events of these updates; empty if there is nothing to show yet."""
        if self._counted is None:
            return b"".join([self._events(choice, delta) for choice, delta, _ in batch])
        return b"".join([self._counted_events(*update) for update in batch])

    def _counted_events(self, choice: int, delta: TextDelta, num_tokens: int) -> bytes:
        assert self._counted is not None
        self._num_tokens[choice] += num_tokens
        self._labels["usage"] = self._counted(choice, self._num_tokens[choice])
        return b"".join(map(self._event, self._shape.chunks(choice, delta)))

    def _events(self, choice: int, delta: TextDelta) -> bytes:
        frame = self._frames.get(choice)
        if frame is not None and delta.finish is None:
            return frame[0] + _encoded(delta.text).encode() + frame[1] if delta.text else b""
        events = b"".join(map(self._event, self._shape.chunks(choice, delta)))
        if events and not self._shape.scores:  # the first chunk of a choice is unlike the others
            self._frames[choice] = self._frame(choice)
        return events

    def _frame(self, choice: int) -> tuple[bytes, bytes]:
        """The bytes before and behind the text in an event of text alone."""
        before, _, behind = self._event(self._shape.text(choice, _TEXT)).rpartition(_ENCODED_TEXT)
        return before, behind

    def _event(self, choice: Mapping[str, object]) -> bytes:
        chunk = {**self._labels, "choices": [choice]}
        if self._shape.scores:
            return f"data: {''.join(_stepwise.iterencode(chunk))}\n\n".encode()
        return event(chunk)
